"""The bodies of the endpoints for tokens and prompts."""
