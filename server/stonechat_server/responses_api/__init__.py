"""The endpoint `/v1/responses`: OpenAI's Responses API without storage.

A request becomes a chat request, and the answer's pieces become items and named events.
"""
