import pytest

from stonechat_models.checkpoint.spelling import did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "expected"),
    [("smolm2", "SmolLM2"), ("SmolLM2", "SmolLM2"), ("qwen-3", "Qwen/Qwen3"), ("other", None)],
)
def test_the_nearest_name(word: str, expected: str | None) -> None:
    spellings = {"SmolLM2": "SmolLM2", "Qwen3": "Qwen/Qwen3"}
    assert nearest(word, spellings) == expected


def test_the_end_of_a_sentence() -> None:
    assert did_you_mean("srve", ["serve"], "see the list") == "; did you mean serve?"
    assert did_you_mean("x", ["serve"], "see the list") == "; see the list"
