"""The results in the terminal, as Markdown, CSV and HTML."""
