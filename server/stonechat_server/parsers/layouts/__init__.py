"""Readers of tool calls, one for each kind of layout."""
