"""The ways to compute logits: the protocol in `base`, and the packages that implement it."""
