"""`suffix` writes the prompt as each family of models expects it."""

import pytest
from fastapi.testclient import TestClient
from tokenizers import AddedToken

from stonechat_models.text.tokenizer import Tokenizer
from stonechat_server.completions_api.fill_in import FORMATS, FillInFormat, fill_in_format
from tests.models.tiny_tokenizers import byte_level_backend, sentencepiece_backend, wrap
from tests.server.bodies import error_of
from tests.server.completions_api.bodies import ask, post
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info

BAR, SPACE = "\uff5c", "\u2581"
WRITTEN = {
    "<|fim_prefix|>": "<|fim_prefix|>[a]<|fim_suffix|>[b]<|fim_middle|>",
    "<fim_prefix>": "<fim_prefix>[a]<fim_suffix>[b]<fim_middle>",
    "<fim-prefix>": "<fim-prefix>[a]<fim-suffix>[b]<fim-middle>",
    f"<{BAR}fim{SPACE}begin{BAR}>": (
        f"<{BAR}fim{SPACE}begin{BAR}>[a]<{BAR}fim{SPACE}hole{BAR}>[b]<{BAR}fim{SPACE}end{BAR}>"
    ),
    f"{SPACE}<PRE>": f"{SPACE}<PRE>[a]{SPACE}<SUF>[b]{SPACE}<MID>",
    "<|code_prefix|>": "<|code_prefix|>[a]<|code_suffix|>[b]<|code_middle|>",
    "<[fim-prefix]>": "<[fim-suffix]>[b]<[fim-prefix]>[a]<[fim-middle]>",
    "[PREFIX]": "[SUFFIX][b][PREFIX][a]",
}
"""The prompt with plain texts in brackets, by the token before the text in front of the gap."""


def test_every_format_is_written_down() -> None:
    assert [known.prefix for known in FORMATS] == list(WRITTEN)


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.prefix)
def test_the_order_of_the_parts(
    client: TestClient, engine: FakeEngine, known: FillInFormat
) -> None:
    engine.tokenizer.added_tokens = frozenset({*known.tokens, "<other>"})
    ask(client, prompt="a", suffix="b")
    assert engine.prompt == WRITTEN[known.prefix]


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.prefix)
def test_all_tokens_of_a_format_are_needed(known: FillInFormat) -> None:
    for missing in known.tokens:
        assert fill_in_format(set(known.tokens) - {missing}) is None


def test_a_model_without_the_tokens_refuses_a_suffix(client: TestClient) -> None:
    error = error_of(post(client, suffix="b"))
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    assert post(client, suffix="").status_code == 200


def test_token_ids_have_no_suffix(client: TestClient, engine: FakeEngine) -> None:
    engine.tokenizer = ByteTokenizer(added_tokens=frozenset(FORMATS[0].tokens))
    error = error_of(post(client, prompt=[1], suffix="b"))
    assert (error["param"], error["code"]) == ("suffix", "invalid_value")


def tokenizer_of(known: FillInFormat, *, special: bool) -> Tokenizer:
    backend = byte_level_backend()
    tokens = [AddedToken(text, special=special) for text in (*known.tokens, *known.ends)]
    (backend.add_special_tokens if special else backend.add_tokens)(tokens)
    return wrap(backend)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.prefix)
def test_texts_have_no_special_tokens(
    client: TestClient, engine: FakeEngine, known: FillInFormat, special: bool
) -> None:
    tokenizer = tokenizer_of(known, special=special)
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    engine.model = model_info(vocab_size=tokenizer.vocab_size)
    ask(client, prompt=f"a{known.prefix}", suffix=f"{known.suffix}b")
    ids = list(engine.requests[-1].prompt_token_ids)
    for text in known.tokens:
        (token_id,) = tokenizer.encode(text)
        assert ids.count(token_id) == 1
    texts = [f"a{known.prefix}", f"{known.suffix}b"]
    shown = "".join(text if not plain else texts.pop(0) for text, plain in known.parts("", ""))
    if not known.suffix_first:
        assert tokenizer.decode(ids, skip_special_tokens=False) == shown


def test_the_family_s_tokens_end_the_answer(client: TestClient, engine: FakeEngine) -> None:
    known = FORMATS[0]
    tokenizer = tokenizer_of(known, special=False)
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    engine.model = model_info(vocab_size=tokenizer.vocab_size)
    ask(client, prompt="a", suffix="b", stop_token_ids=[5])
    ends = {tokenizer.encode(text)[0] for text in known.ends}
    assert set(engine.requests[-1].params.stop_token_ids) == {5} | ends
    ask(client, prompt="a")
    assert engine.requests[-1].params.stop_token_ids == ()


def test_a_sentencepiece_text_begins_as_it_would_alone(
    client: TestClient, engine: FakeEngine
) -> None:
    """Code Llama's tokens stand in front of texts as its own encoder writes them."""
    known = next(known for known in FORMATS if known.prefix == f"{SPACE}<PRE>")
    backend = sentencepiece_backend()
    backend.add_special_tokens([AddedToken(text, special=True) for text in known.tokens])
    tokenizer = wrap(backend, eos="</s>")
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    engine.model = model_info(vocab_size=tokenizer.vocab_size)
    ask(client, prompt="a", suffix="b")
    pieces = [tokenizer.token_text(i) for i in engine.requests[-1].prompt_token_ids]
    assert [piece.strip() for piece in pieces if piece.strip()] == [
        *("<PRE>", "a", "<SUF>", "b", "<MID>")
    ]
