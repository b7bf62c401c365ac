"""Muse Glimmer: calls are messages with a recipient; `parsers.muse` describes them."""

from dataclasses import replace

from stonechat_server.tool_formats.invoke import invokes

MESSAGE, END, START, RETURN = "<|message|>", "<|eom|>", "<|start|>", "<|eot|>"
TOKENS = (MESSAGE, END, START, RETURN)
VISIBLE_HEADERS = (f" to=user{MESSAGE}", f"{START}assistant{MESSAGE}")
"""Headers of messages to the user, but for the first if it has no recipient."""
RECIPIENT_KEY = "to="

MUSE = replace(invokes("muse", "atem:function_calls", "atem:"), has_recipients=True)
