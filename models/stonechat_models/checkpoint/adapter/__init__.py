"""LoRA adapters: names, files, and which layers they change."""
