"""Token ids to text and back: tokenizer, detokenizer, stop strings and the output of a choice.

May import `sampling` and the modules at the root.
"""
