"""Model files on disk: finds, downloads, converts and describes them.

May import `hardware` and the modules at the root; imports neither `text` nor a backend.
"""
