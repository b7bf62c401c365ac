"""Who may call: API keys, the keys file, and the guard against other web pages.

May import `client`, `settings` and what stands below them.
"""
