"""What a client sees: the HTTP side of Stonechat."""
