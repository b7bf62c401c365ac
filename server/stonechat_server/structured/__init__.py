"""What form an answer must have: the grammar that forces it and the parser that reads it.

May import `prompt`, `parsers`, `tool_formats` and what stands below them.
"""
