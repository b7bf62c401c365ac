"""Decides who may use the server: API keys, the keys file, the guard against other web pages.

May import `client`, `settings` and the layers below them.
"""
