"""Selects the tool format of a model."""

from stonechat_server.tool_formats import (
    deepseek,
    gemma,
    glm,
    harmony,
    hermes,
    invoke,
    kimi,
    mistral,
    muse,
    qwen_coder,
    tool_list,
    whole_answer,
)
from stonechat_server.tool_formats.layout import ToolFormat

_MARKS = (
    ((harmony.HARMONY.trigger,), harmony.HARMONY),
    (("[TOOL_CALLS]", "[ARGS]"), mistral.MISTRAL),
    (("[TOOL_CALLS]",), mistral.MISTRAL_LIST),
    ((deepseek.BEGIN, "```json"), deepseek.DEEPSEEK_V3),
    ((deepseek.BEGIN,), deepseek.DEEPSEEK_V31),
    ((deepseek.DSML, " calls>"), deepseek.DEEPSEEK_V41),
    ((deepseek.DSML, "tool_calls>"), deepseek.DEEPSEEK_V4),
    ((deepseek.DSML,), deepseek.DEEPSEEK_V32),
    ((deepseek.GCML,), deepseek.GIGACHAT35),
    ((invoke.MINIMAX.trigger,), invoke.MINIMAX),
    (("]<]minimax[>[",), invoke.MINIMAX_M3),
    ((qwen_coder.SEED.trigger,), qwen_coder.SEED),
    (("<function name=",), invoke.MINICPM5),
    (("<tool_sep", ":opensource"), glm.HUNYUAN3_OPEN),
    (("<tool_sep",), glm.HUNYUAN3),
    (("<tool_calls", "<arg_key", ":opensource"), glm.HUNYUAN4_OPEN),
    (("<tool_calls>", "<arg_key>"), glm.HUNYUAN4),
    (("<ifm|tool_calls>",), glm.K2_HORIZON),
    ((glm.IQUEST.trigger,), glm.IQUEST),
    (("<steptml:",), invoke.STEP3),
    ((invoke.DOTS.trigger,), invoke.DOTS),
    ((hermes.LONGCAT.trigger,), hermes.LONGCAT),
    (("<|open|>", "<|sep|>"), kimi.KIMI_K3),
    ((kimi.SOLAR.trigger,), kimi.SOLAR),
    ((kimi.SOLAR2.trigger,), kimi.SOLAR2),
    ((hermes.MCP.trigger,), hermes.MCP),
    (("-> tool/function_call",), tool_list.HYPERCLOVA),
    ((tool_list.PANGU.trigger,), tool_list.PANGU),
    ((tool_list.COHERE.trigger,), tool_list.COHERE),
    (("Action:", "```json", "tool_name"), tool_list.COMMAND_R),
    ((tool_list.APERTUS.trigger,), tool_list.APERTUS),
    (("<tool_call|>",), gemma.GEMMA4),
    ((gemma.FUNCTION_GEMMA.trigger,), gemma.FUNCTION_GEMMA),
    (("<|action_start|>",), hermes.INTERNLM2),
    (("<arg_key>",), glm.GLM),
    (("<parameter=",), qwen_coder.QWEN_CODER),
    ((hermes.FUNCTIONARY.trigger,), hermes.FUNCTIONARY),
    ((">>>all\\n",), hermes.FUNCTIONARY32),
    (("<tool_calls>\\n{",), tool_list.MINIMAX_M1),
    ((tool_list.TOOL_CALLS.trigger,), tool_list.TOOL_CALLS),
    ((hermes.HERMES.trigger,), hermes.HERMES),
    ((kimi.KIMI.trigger,), kimi.KIMI),
    (("<|im_system|>tool_declare",), kimi.KIMI),
    ((tool_list.NEMOTRON.trigger,), tool_list.NEMOTRON),
    (("functools[",), tool_list.FUNCTOOLS),
    (("<|/tool|>",), tool_list.PHI),
    ((tool_list.GRANITE.trigger,), tool_list.GRANITE),
    ((hermes.GIGACHAT.trigger,), hermes.GIGACHAT),
    (("function call", "<|role_sep|>"), hermes.GIGACHAT3),
    ((tool_list.LFM2.trigger,), tool_list.LFM2),
    (("<|tool_list_start|>",), tool_list.LFM2),
    (("List of tools: [",), tool_list.LFM2),
    ((tool_list.OLMO3.trigger,), tool_list.OLMO3),
    ((hermes.GRANITE_20B.trigger,), hermes.GRANITE_20B),
    (("[func_name1(",), whole_answer.PYTHONIC),
    (("<|python_start|>",), whole_answer.PYTHONIC),
    (('[{"name": "tool_call_name"',), tool_list.XLAM),
    ((muse.MUSE.trigger, " to=self<|message|>"), muse.MUSE),
    ((muse.MUSE.trigger,), hermes.GENERIC),
    (("<|python_tag|>",), whole_answer.LLAMA_JSON),
    (('"parameters": ',), whole_answer.LLAMA_JSON),
)
"""Texts that together show a format's templates. Order matters: the templates of a format may also
contain the texts of formats further down."""

FORMATS: dict[str, ToolFormat] = {
    format.name: format
    for format in dict.fromkeys([*(format for _, format in _MARKS), hermes.GENERIC])
}


def select_format(template: str) -> ToolFormat:
    """The format that the text of the template shows; the generic format if it shows none."""
    for texts, format in _MARKS:
        if all(text in template for text in texts):
            return format
    return hermes.GENERIC
