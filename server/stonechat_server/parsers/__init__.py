"""Parse the text of a choice into content, reasoning and tool calls; one file per call format."""
