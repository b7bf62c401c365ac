"""Constrains which tokens may come next: JSON Schema, Lark and regex grammars, reasoning budgets.

May import `sampling` and the modules at the root.
"""
