"""Limits on schemas and expressions. Whatever exceeds one is refused."""

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.schemas.schema_tree import values

MAX_DEPTH = 64
MAX_VALUES = 20_000
MAX_EXPRESSION_CHARS = 16 * 1024
"""Of one regex, terminal or fixed text. A larger one makes single steps of llguidance long, which
its fuel does not bound."""


def check_expression(num_chars: int, what: str) -> None:
    """Raise `GrammarError` if an expression of this size is too long."""
    if num_chars > MAX_EXPRESSION_CHARS:
        raise GrammarError(f"{what} may have at most {MAX_EXPRESSION_CHARS:,} characters")


def check_size(schema: object) -> None:
    """Raise `GrammarError` for a schema that is too deep, or has too many values."""
    level: list[object] = [schema]
    num_values = 0
    for _ in range(MAX_DEPTH):
        num_values += len(level)
        level = [child for value in level for child in values(value)]
        if num_values > MAX_VALUES:
            raise GrammarError(f"the JSON schema has more than {MAX_VALUES} values")
        if not level:
            return
    raise GrammarError(f"the JSON schema is nested more than {MAX_DEPTH} levels deep")
