"""Turns token ids into text and back: tokenizer, detokenizer, stop strings, output of a choice.

May import `sampling` and the modules at the root.
"""
