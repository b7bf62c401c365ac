"""Speculative decoding: draft tokens, which a step verifies."""
