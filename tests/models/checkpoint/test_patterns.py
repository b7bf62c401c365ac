"""Patterns of model files match as in Python, and none takes for ever."""

import re

import pytest

from stonechat_models.checkpoint.patterns import PatternError, compiled

PATH = "model.layers.12.mlp.experts.3.down_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        r".*mlp.*",
        r".*self_attn.*\.(q|k|v|o)_proj$",
        r".*mlp\.experts(?:\..*)?$",
        r"model\.layers\.\d+\.mlp",
        r"^model.layers.[0-9]+.*(gate|up|down)_proj$",
        r"^(?!.*(lm_head|visual)).*$",
        r"^(?!.*experts).*",
        r".*layers\.(1|2|3)\..*",
        r"experts",
    ],
)
def test_patterns_of_published_models_match_as_in_python(pattern: str) -> None:
    assert compiled(pattern)(PATH) == (re.match(pattern, PATH) is not None)


def test_a_pattern_matches_at_the_start_only() -> None:
    for pattern in ("experts", "model|experts", "experts|model", "^layers|^mod", "", "$", "(?!x)"):
        assert compiled(pattern)(PATH) == (re.match(pattern, PATH) is not None), pattern


def test_patterns_with_very_many_ways_to_match_end() -> None:
    """A matcher that tries one way after the other would not."""
    path = "a" * 60
    for pattern in (".*a" * 30 + "b", "a?" * 60 + "a" * 61, "(a|a)" * 59 + "b", "((a)+)+b"):
        assert not compiled(pattern)(path)
    assert compiled("a?" * 60 + "a" * 60)(path)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(",
            ")",
            "a)|(b",
            "a**",
            "[b-a]",
            "[",
            "\\",
            r"(a)\1",
            "a" * 5000,
            "(a{100}){1000}{1000}",
            "a{99999999999}",
        ),
        *("(?<=a)b", "a(?!b)", "(?!(?!a))", "(?!a)b|c", "(?!a"),
    ],
)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        compiled(pattern)
