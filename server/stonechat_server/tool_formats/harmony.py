"""gpt-oss: calls are messages with a recipient; `parsers.harmony` describes them."""

from stonechat_server.tool_formats.layout import HarmonyLayout, ToolFormat

CHANNEL, MESSAGE, END, START = "<|channel|>", "<|message|>", "<|end|>", "<|start|>"
CALL, RETURN, CONSTRAIN = "<|call|>", "<|return|>", "<|constrain|>"
TOKENS = (CHANNEL, MESSAGE, END, START, CALL, RETURN, CONSTRAIN)
VISIBLE_HEADERS = tuple(
    f"{CHANNEL}{header}{MESSAGE}"
    for header in ("final", "commentary", f"final {CONSTRAIN}json", f"final{CONSTRAIN}json")
)
"""Headers of messages to the user."""

HARMONY = ToolFormat(name="harmony", trigger=CHANNEL, layout=HarmonyLayout(), is_parallel=False)
