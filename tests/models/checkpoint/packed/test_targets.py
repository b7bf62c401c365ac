"""Patterns of modules match as Python's regular expressions do, whatever a model file asks for."""

import random
import re

import pytest

from stonechat_models.checkpoint.packed.targets import PatternError, is_match

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
    assert is_match(pattern, PATH) == (re.match(pattern, PATH) is not None)


def random_pattern(rng: random.Random, depth: int = 0) -> str:
    items = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.random()
        if kind < 0.2 and depth < 2:
            parts = "|".join(random_pattern(rng, depth + 1) for _ in range(rng.randint(1, 3)))
            items.append(f"({rng.choice(['', '?:'])}{parts}){rng.choice(['', '?'])}")
        elif kind < 0.24 and depth == 0:
            items.append(f"(?!{random_pattern(rng, 1)})")
        elif kind < 0.3:
            items.append(rng.choice("^$"))
        else:
            atom = rng.choice(["a", "b", ".", "[ab]", "[^a]", r"\.", r"\d", "[a-b]"])
            items.append(atom + rng.choice(["", "", "*", "+", "?", "*?", "+?"]))
    return "".join(items)


def test_random_patterns_match_as_in_python() -> None:
    rng = random.Random(0)
    num_matches = 0
    for _ in range(3000):
        pattern = random_pattern(rng)
        path = "".join(rng.choice("ab.1") for _ in range(rng.randint(0, 8)))
        expected = re.match(pattern, path) is not None
        assert is_match(pattern, path) == expected, (pattern, path)
        num_matches += expected
    assert 500 < num_matches < 2500


def test_patterns_with_very_many_ways_to_match_end() -> None:
    """A matcher that tries one way after the other would not."""
    path = "a" * 60
    for pattern in (".*a" * 30 + "b", "a?" * 60 + "a" * 61, "(a|a)" * 59 + "b"):
        assert not is_match(pattern, path)
    assert is_match("a?" * 60 + "a" * 60, path)


@pytest.mark.parametrize(
    "pattern",
    [
        "(([a-z_0-9.])+)+x",
        "(a)*",
        "a{9}",
        "(",
        ")",
        "a**",
        "[b-a]",
        "[",
        "\\",
        r"(a)\1",
        "(?<=a)b",
        "(?!(?!a))",
        "(" * 9 + ")" * 9,
        "a" * 5000,
    ],
)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        is_match(pattern, PATH)


def test_paths_that_are_too_long_are_refused() -> None:
    with pytest.raises(PatternError):
        is_match(".*", "a" * 2000)
