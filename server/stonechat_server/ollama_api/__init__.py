"""Ollama's API: `/api/chat`, `/api/generate`, `/api/embed`, `/api/embeddings` and lists of models.

`request` and `fields` say what a body may hold. `reading` makes a chat request or a text completion
of it. `writer` makes the lines of a stream, and the plain answer of them. `embed` has the endpoints
for embeddings, and `models` what clients are told of models.
"""
