"""Fused replacements for parts of a model's own code, each checked against what it replaces."""
