"""`stonechat chat`: a conversation in the terminal with a model loaded here or at a URL."""
