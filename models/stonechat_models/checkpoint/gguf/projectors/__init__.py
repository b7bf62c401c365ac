"""Vision and audio parts of GGUF models, by the type of the projector."""
