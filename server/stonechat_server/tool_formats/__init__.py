"""How each model family writes tool calls, one file per family, and which format a template uses.

May import `admission` and the packages below it, but no parser.
"""
