"""Which format of tool calls a model uses."""

from stonechat_server.parsers.deepseek import BEGIN, DEEPSEEK_V3, DEEPSEEK_V31
from stonechat_server.parsers.format import ToolFormat
from stonechat_server.parsers.generic import GENERIC
from stonechat_server.parsers.hermes import HERMES
from stonechat_server.parsers.llama import LLAMA_JSON
from stonechat_server.parsers.mistral import MISTRAL, MISTRAL_LIST
from stonechat_server.parsers.pythonic import PYTHONIC

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
        GENERIC,
    )
}


def select_format(template: str) -> ToolFormat:
    """The format that the template's own text shows; the generic one if none."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL if "[ARGS]" in template else MISTRAL_LIST
    if BEGIN in template:
        return DEEPSEEK_V3 if "```json" in template else DEEPSEEK_V31
    if "<tool_call>" in template:
        return HERMES
    if "[func_name1(" in template or "<|python_start|>" in template:
        return PYTHONIC
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return LLAMA_JSON
    return GENERIC
