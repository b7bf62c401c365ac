"""The version of Stonechat, in one place."""

__version__ = "0.2.0"
