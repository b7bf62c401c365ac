"""`POST /v1/chat/completions`: the endpoint to whose request all others are translated."""
