"""Fused replacements for parts of a model's own code, each tried against what it replaces."""
