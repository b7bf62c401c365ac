"""How each model family writes tool calls, one file per family, and which format a template uses.

It imports none of the other packages.
"""
