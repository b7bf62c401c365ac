"""Attention over the paged KV cache, in a function that Hugging Face models call by name."""
