"""Messages to prompt text, by the model's chat template.

May import `parsers`, `tool_formats` and what stands below them.
"""
