"""`stonechat bench`: load any OpenAI-compatible URL, measure it, and check the measurement."""
