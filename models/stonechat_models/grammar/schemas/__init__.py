"""JSON schemas: their plain form, and what of them a grammar can enforce."""
