"""Replicas of the engine on Ray Serve, behind the server's own application.

`application.build` is the app that Ray Serve imports. It needs the extra `ray`.
"""
