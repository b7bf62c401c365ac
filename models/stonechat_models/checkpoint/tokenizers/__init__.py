"""Makes tokenizer.json of what a folder without one has."""
