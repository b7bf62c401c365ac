"""Selects the tool format of a model."""

from stonechat_server.tool_formats.deepseek import (
    BEGIN,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    DEEPSEEK_V32,
    DSML,
)
from stonechat_server.tool_formats.generic import GENERIC
from stonechat_server.tool_formats.glm import GLM
from stonechat_server.tool_formats.harmony import HARMONY
from stonechat_server.tool_formats.hermes import HERMES
from stonechat_server.tool_formats.kimi import KIMI
from stonechat_server.tool_formats.layout import ToolFormat
from stonechat_server.tool_formats.llama import LLAMA_JSON
from stonechat_server.tool_formats.minimax import MINIMAX
from stonechat_server.tool_formats.mistral import MISTRAL, MISTRAL_LIST
from stonechat_server.tool_formats.pythonic import PYTHONIC
from stonechat_server.tool_formats.qwen_coder import QWEN_CODER
from stonechat_server.tool_formats.seed import SEED
from stonechat_server.tool_formats.tool_list import GRANITE, LFM2, NEMOTRON, PHI

FORMATS: dict[str, ToolFormat] = {
    format.name: format
    for format in (
        HERMES,
        LLAMA_JSON,
        PYTHONIC,
        MISTRAL,
        MISTRAL_LIST,
        DEEPSEEK_V3,
        DEEPSEEK_V31,
        DEEPSEEK_V32,
        HARMONY,
        QWEN_CODER,
        GLM,
        KIMI,
        MINIMAX,
        SEED,
        NEMOTRON,
        GRANITE,
        PHI,
        LFM2,
        GENERIC,
    )
}


_MARKS = (
    (DSML, DEEPSEEK_V32),
    ("<minimax:tool_call>", MINIMAX),
    ("<seed:tool_call>", SEED),
    ("<arg_key>", GLM),
    ("<parameter=", QWEN_CODER),
    ("<tool_call>", HERMES),
    (KIMI.trigger, KIMI),
    ("<|im_system|>tool_declare", KIMI),
    (NEMOTRON.trigger, NEMOTRON),
    ("<|/tool|>", PHI),
    (GRANITE.trigger, GRANITE),
    ("<|tool_list_start|>", LFM2),
)
"""Texts by which a format's templates are recognised. Order matters: the templates of a format may
also contain the texts of formats further down."""


def select_format(template: str) -> ToolFormat:
    """The format that the text of the template shows; the generic format if it shows none."""
    if HARMONY.trigger in template:
        return HARMONY
    if "[TOOL_CALLS]" in template:
        return MISTRAL if "[ARGS]" in template else MISTRAL_LIST
    if BEGIN in template:
        return DEEPSEEK_V3 if "```json" in template else DEEPSEEK_V31
    for mark, format in _MARKS:
        if mark in template:
            return format
    if "[func_name1(" in template or "<|python_start|>" in template:
        return PYTHONIC
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return LLAMA_JSON
    return GENERIC
