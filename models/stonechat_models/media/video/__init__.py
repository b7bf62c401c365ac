"""Videos in prompts: their frames, and the rules by which models see them."""
