"""The format for models whose template renders no tools. `tool_prompt` explains it to the model."""

from dataclasses import replace

from stonechat_server.tool_formats.hermes import HERMES

GENERIC = replace(HERMES, name="generic")
