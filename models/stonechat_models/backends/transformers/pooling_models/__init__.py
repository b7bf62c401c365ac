"""Models whose hidden states become an embedding or a score."""
