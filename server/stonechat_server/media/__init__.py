"""Images, audio, videos and documents of a request: their sources and bounds, and the way to the
processors.

May import `structured` and the layers below it.
"""
