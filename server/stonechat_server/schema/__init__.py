"""Wire types: what clients send (pydantic) and what they receive (msgspec)."""
