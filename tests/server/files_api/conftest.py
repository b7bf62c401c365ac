"""A server that keeps files in a folder of the test."""

from tests.server.storing import new_server, server

__all__ = ["new_server", "server"]
