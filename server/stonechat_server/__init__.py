"""The HTTP server of Stonechat: everything that a client sees."""
