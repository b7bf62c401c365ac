"""The endpoint `/v1/responses`: OpenAI's Responses API.

A request becomes a chat request, and the answer's pieces become items and named events. Answers are
stored, so that later requests can continue them.
"""
