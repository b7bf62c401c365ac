"""What lies on disk: finds, downloads, converts and describes model files.

May import `hardware` and the modules at the root; imports neither `text` nor a backend.
"""
