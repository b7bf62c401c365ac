"""The OpenAPI document, and the types that only it describes."""
