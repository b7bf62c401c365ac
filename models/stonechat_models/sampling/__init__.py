"""Logits to one token a row: edits, truncation, the draw and log-probabilities.

May import `hardware` and the modules at the root.
"""
