"""`stonechat chat`: a conversation in the terminal, with a model of its own or at a URL."""
