import pytest

from stonechat_models.checkpoint.known.spelling import did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "expected"),
    [("smolm2", "SmolLM2"), ("SmolLM2", "SmolLM2"), ("qwen-3", "Qwen/Qwen3"), ("other", None)],
)
def test_the_nearest_name(word: str, expected: str | None) -> None:
    spellings = {"SmolLM2": "SmolLM2", "Qwen3": "Qwen/Qwen3"}
    assert nearest(word, spellings) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("smollm2", "SmolLM2-135M-Instruct"),
        ("SMO", "SmolLM2-135M-Instruct"),
        ("sm", None),
        ("135M", None),
    ],
)
def test_the_beginning_of_a_name(word: str, expected: str | None) -> None:
    names = ["SmolLM2-1.7B-Instruct-GGUF", "SmolLM2-135M-Instruct", "Qwen3"]
    assert nearest(word, {name: name for name in names}) == expected


def test_the_end_of_a_sentence() -> None:
    assert did_you_mean("srve", ["serve"], "see the list") == "; did you mean serve?"
    assert did_you_mean("x", ["serve"], "see the list") == "; see the list"
