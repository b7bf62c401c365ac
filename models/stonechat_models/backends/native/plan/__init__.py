"""Which layers of a model the compiled path computes, and from which weights."""
