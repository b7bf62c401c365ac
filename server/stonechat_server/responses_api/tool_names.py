"""The names by which the model calls tools: the tool's own, or one with its namespace before it."""

from dataclasses import dataclass, field
from hashlib import sha256

SEPARATOR = "__"
MAX_LENGTH = 64
HASH_LENGTH = 8

FullName = tuple[str | None, str]
"""A namespace, or None, and a tool's name in it."""


def joined_name(namespace: str | None, name: str) -> str:
    """The name that the model sees. In a name that would be too long, a hash ends the namespace."""
    if not namespace:
        return name
    joined = f"{namespace}{SEPARATOR}{name}"
    if len(joined) <= MAX_LENGTH:
        return joined
    suffix = f"{sha256(joined.encode()).hexdigest()[:HASH_LENGTH]}{SEPARATOR}{name}"
    return (namespace[: max(0, MAX_LENGTH - len(suffix))] + suffix)[:MAX_LENGTH]


@dataclass(slots=True)
class ToolNames:
    """The tools of a request that are in a namespace, by the names that the model sees."""

    full_names: dict[str, FullName] = field(default_factory=dict)
    visible_names: dict[str, str] = field(default_factory=dict)
    """The name that the model sees, by a tool's own name; of the first tool that has it."""

    def add(self, namespace: str, name: str) -> str:
        """Note a tool. Returns the name that the model sees."""
        joined = joined_name(namespace, name)
        self.full_names[joined] = namespace, name
        self.visible_names.setdefault(name, joined)
        return joined

    def split(self, name: str) -> FullName:
        """The namespace and the own name of a tool that the model has called."""
        return self.full_names.get(name, (None, name))
