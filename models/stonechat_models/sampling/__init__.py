"""Turns logits into one token per row: edits, truncation, the draw and log-probabilities.

May import `hardware` and the modules at the root.
"""
