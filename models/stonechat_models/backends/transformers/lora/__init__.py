"""LoRA adapters beside a module: each is added for the rows of the sequences that chose it."""
