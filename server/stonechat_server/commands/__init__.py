"""Subcommands of `stonechat`, one module each."""
