"""Text completions: the text goes on where the prompt ends, and every token is accounted for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonechat_models.text.output_processor import OutputProcessor
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import (
    CompletionDelta,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    StopRules,
    TokenLogprobs,
    TokenOutput,
)
from tests.models.tiny_tokenizers import (
    EOS,
    OTHER,
    byte_level_backend,
    sentencepiece_backend,
    wrap,
)

BACKEND = byte_level_backend()
TOKENIZER = wrap(BACKEND)
EOS_ID, OTHER_ID = BACKEND.token_to_id(EOS), BACKEND.token_to_id(OTHER)
LLAMA = wrap(sentencepiece_backend(), "</s>")
BOS_ID = 1  # `</s>`, the only special token of that vocabulary


def complete(
    tokenizer: Tokenizer,
    prompt: list[int],
    ids: list[int],
    end: int | None = None,
    **params: object,
) -> list[CompletionDelta]:
    """The deltas of a text that is generated token by token."""
    settings = SamplingParams(continues_text=True, top_logprobs=0, **params)  # type: ignore[arg-type]
    request = GenerateRequest(request_id="r", prompt_token_ids=prompt, params=settings)
    processor = OutputProcessor(tokenizer, request)
    deltas: list[CompletionDelta] = []
    for position, token_id in enumerate(ids):
        is_last = position == len(ids) - 1
        finish = (FinishReason.LENGTH if end is None else FinishReason.STOP) if is_last else None
        logprobs = (TokenLogprobs(token_id, -1.0 - position),)
        stop_id = end if is_last else None
        output = TokenOutput("r", 0, (token_id,), logprobs, finish, 0, stop_id)
        deltas += processor.process([output]).deltas
    return deltas


def text_of(deltas: list[CompletionDelta]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("text", [" the", "the", "é", "世"])
def test_a_space_after_the_prompt_is_kept(text: str) -> None:
    prompt, ids = LLAMA.encode("a b"), LLAMA.encode(f"a{text}")[len(LLAMA.encode("a")) :]
    whole = LLAMA.decode(prompt + ids)
    assert text_of(complete(LLAMA, prompt, ids)) == whole.removeprefix(LLAMA.decode(prompt))


def test_a_text_that_begins_has_no_space() -> None:
    ids = LLAMA.encode("a b")
    assert text_of(complete(LLAMA, [BOS_ID], ids)) == "a b"


def test_a_chat_answer_begins_a_text() -> None:
    ids = LLAMA.encode("a b")
    request = GenerateRequest(request_id="r", prompt_token_ids=ids, params=SamplingParams())
    processor = OutputProcessor(LLAMA, request)
    output = TokenOutput("r", 0, tuple(ids), None, FinishReason.LENGTH, 0)
    assert processor.process([output]).deltas[0].text == "a b"


@given(st.lists(st.sampled_from([*b"ab\xc3\xa9", OTHER_ID]), max_size=8), st.booleans())
def test_every_token_has_an_entry(ids: list[int], ends: bool) -> None:
    ids = [*ids, EOS_ID if ends else ord("a")]
    deltas = complete(TOKENIZER, [97], ids, EOS_ID if ends else None)
    entries = [entry for delta in deltas for entry in delta.logprobs or ()]
    assert [entry.token_id for entry in entries] == ids
    assert [entry.logprob for entry in entries] == [-1.0 - i for i in range(len(ids))]
    data = b"".join(entry.bytes for entry in entries)
    assert data.decode("utf-8", "replace") == text_of(deltas)
    assert entries[-1].token == (EOS if ends else "a")


def test_a_removed_stop_string_has_no_entries() -> None:
    deltas = complete(TOKENIZER, [97], list(b"xab"), stop=StopRules(strings=("ab",)))
    assert [entry.token for delta in deltas for entry in delta.logprobs or ()] == ["x"]
