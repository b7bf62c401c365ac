"""What a sequence knows of its prompt: media in it, and what it may repeat of it."""
