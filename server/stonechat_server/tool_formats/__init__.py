"""How each model family writes tool calls, one family a file, and which format a template uses.

May import `admission` and what stands below it, but no parser.
"""
