"""Selects the tool format of a model."""

from stonechat_server.tool_formats.deepseek import (
    BEGIN,
    DEEPSEEK_V3,
    DEEPSEEK_V4,
    DEEPSEEK_V31,
    DEEPSEEK_V32,
    DEEPSEEK_V41,
    DSML,
    GCML,
    GIGACHAT35,
)
from stonechat_server.tool_formats.gemma import FUNCTION_GEMMA, GEMMA4
from stonechat_server.tool_formats.glm import (
    GLM,
    HUNYUAN3,
    HUNYUAN3_OPEN,
    HUNYUAN4,
    HUNYUAN4_OPEN,
    IQUEST,
    K2_HORIZON,
)
from stonechat_server.tool_formats.harmony import HARMONY
from stonechat_server.tool_formats.hermes import (
    FUNCTIONARY,
    FUNCTIONARY32,
    GENERIC,
    GIGACHAT,
    GIGACHAT3,
    GRANITE_20B,
    HERMES,
    INTERNLM2,
    LONGCAT,
    MCP,
)
from stonechat_server.tool_formats.invoke import DOTS, MINICPM5, MINIMAX, MINIMAX_M3, STEP3
from stonechat_server.tool_formats.kimi import KIMI, KIMI_K3, SOLAR, SOLAR2
from stonechat_server.tool_formats.layout import ToolFormat
from stonechat_server.tool_formats.mistral import MISTRAL, MISTRAL_LIST
from stonechat_server.tool_formats.muse import MUSE
from stonechat_server.tool_formats.qwen_coder import QWEN_CODER, SEED
from stonechat_server.tool_formats.tool_list import (
    APERTUS,
    COHERE,
    COMMAND_R,
    FUNCTOOLS,
    GRANITE,
    HYPERCLOVA,
    LFM2,
    MINIMAX_M1,
    NEMOTRON,
    OLMO3,
    PANGU,
    PHI,
    TOOL_CALLS,
    XLAM,
)
from stonechat_server.tool_formats.whole_answer import LLAMA_JSON, PYTHONIC

_MARKS = (
    ((HARMONY.trigger,), HARMONY),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL),
    (("[TOOL_CALLS]",), MISTRAL_LIST),
    ((BEGIN, "```json"), DEEPSEEK_V3),
    ((BEGIN,), DEEPSEEK_V31),
    ((DSML, " calls>"), DEEPSEEK_V41),
    ((DSML, "tool_calls>"), DEEPSEEK_V4),
    ((DSML,), DEEPSEEK_V32),
    ((GCML,), GIGACHAT35),
    ((MINIMAX.trigger,), MINIMAX),
    (("]<]minimax[>[",), MINIMAX_M3),
    ((SEED.trigger,), SEED),
    (("<function name=",), MINICPM5),
    (("<tool_sep", ":opensource"), HUNYUAN3_OPEN),
    (("<tool_sep",), HUNYUAN3),
    (("<tool_calls", "<arg_key", ":opensource"), HUNYUAN4_OPEN),
    (("<tool_calls>", "<arg_key>"), HUNYUAN4),
    (("<ifm|tool_calls>",), K2_HORIZON),
    ((IQUEST.trigger,), IQUEST),
    (("<steptml:",), STEP3),
    ((DOTS.trigger,), DOTS),
    ((LONGCAT.trigger,), LONGCAT),
    (("<|open|>", "<|sep|>"), KIMI_K3),
    ((SOLAR.trigger,), SOLAR),
    ((SOLAR2.trigger,), SOLAR2),
    ((MCP.trigger,), MCP),
    (("-> tool/function_call",), HYPERCLOVA),
    ((PANGU.trigger,), PANGU),
    ((COHERE.trigger,), COHERE),
    (("Action:", "```json", "tool_name"), COMMAND_R),
    ((APERTUS.trigger,), APERTUS),
    (("<tool_call|>",), GEMMA4),
    ((FUNCTION_GEMMA.trigger,), FUNCTION_GEMMA),
    (("<|action_start|>",), INTERNLM2),
    (("<arg_key>",), GLM),
    (("<parameter=",), QWEN_CODER),
    ((FUNCTIONARY.trigger,), FUNCTIONARY),
    ((">>>all\\n",), FUNCTIONARY32),
    (("<tool_calls>\\n{",), MINIMAX_M1),
    ((TOOL_CALLS.trigger,), TOOL_CALLS),
    ((HERMES.trigger,), HERMES),
    ((KIMI.trigger,), KIMI),
    (("<|im_system|>tool_declare",), KIMI),
    ((NEMOTRON.trigger,), NEMOTRON),
    (("functools[",), FUNCTOOLS),
    (("<|/tool|>",), PHI),
    ((GRANITE.trigger,), GRANITE),
    ((GIGACHAT.trigger,), GIGACHAT),
    (("function call", "<|role_sep|>"), GIGACHAT3),
    ((LFM2.trigger,), LFM2),
    (("<|tool_list_start|>",), LFM2),
    (("List of tools: [",), LFM2),
    ((OLMO3.trigger,), OLMO3),
    ((GRANITE_20B.trigger,), GRANITE_20B),
    (("[func_name1(",), PYTHONIC),
    (("<|python_start|>",), PYTHONIC),
    (('[{"name": "tool_call_name"',), XLAM),
    ((MUSE.trigger, " to=self<|message|>"), MUSE),
    ((MUSE.trigger,), GENERIC),
    (("<|python_tag|>",), LLAMA_JSON),
    (('"parameters": ',), LLAMA_JSON),
)
"""Texts that together show a format's templates. Order matters: the templates of a format may also
contain the texts of formats further down."""

FORMATS: dict[str, ToolFormat] = {
    format.name: format for format in dict.fromkeys([*(format for _, format in _MARKS), GENERIC])
}


def select_format(template: str) -> ToolFormat:
    """The format that the text of the template shows; the generic format if it shows none."""
    for texts, format in _MARKS:
        if all(text in template for text in texts):
            return format
    return GENERIC
