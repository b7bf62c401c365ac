"""Models that compute logits: `base` has the protocol, the packages implement it."""
