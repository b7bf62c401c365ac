"""Chooses the grammar that enforces the form of an answer, and the parser that reads it.

May import `prompt`, `parsers`, `tool_formats` and the packages below them.
"""
