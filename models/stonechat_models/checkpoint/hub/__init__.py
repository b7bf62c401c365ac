"""The Hugging Face hub: names, files, and what goes wrong."""
