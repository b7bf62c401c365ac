"""Text of one choice to content, reasoning and calls; one format of tool calls a file."""
