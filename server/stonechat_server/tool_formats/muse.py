"""Muse Glimmer: calls are messages with a recipient; `parsers.muse` describes them."""

from stonechat_server.tool_formats.layout import TagLayout, ToolFormat

MESSAGE, END, START, RETURN = "<|message|>", "<|eom|>", "<|start|>", "<|eot|>"
TOKENS = (MESSAGE, END, START, RETURN)
VISIBLE_HEADERS = (f" to=user{MESSAGE}", f"{START}assistant{MESSAGE}")
"""Headers of messages to the user, but for the first if it has no recipient."""
RECIPIENT_KEY = "to="

MUSE = ToolFormat(
    name="muse",
    trigger="<atem:function_calls>",
    has_recipients=True,
    layout=TagLayout(
        opening="\n",
        before_name='<atem:invoke name="',
        after_name='">\n',
        before_key='<atem:parameter name="',
        after_key='">',
        after_value="</atem:parameter>\n",
        after_arguments="</atem:invoke>\n",
        separator="",
        closing="</atem:function_calls>",
    ),
)
