"""Renders messages to prompt text with the model's chat template.

May import `parsers`, `tool_formats` and the packages below them.
"""
