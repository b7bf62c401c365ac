"""The models of one server: what serves each of them.

May import `streaming`, `observability` and the layers below them.
"""
