"""An HTTP client with a recorder for event streams, for `stonechat chat` and `stonechat bench`."""
