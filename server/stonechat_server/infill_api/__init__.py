"""llama.cpp's endpoint to fill in the middle of a text, which editors use."""
