"""Images in prompts: from a file's bytes to the embeddings that the model reads."""
