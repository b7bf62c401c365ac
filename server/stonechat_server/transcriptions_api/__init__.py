"""Transcriptions and translations of speech, by models that hear.

May import `serving` and the layers below it.
"""
