"""A control token's spelling in plain parts is ordinary text; all else is encoded as usual."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from stonechat_models.text.plain_text import BEFORE, PlainTextEncoder
from tests.models.tiny_tokenizers import EOS, OTHER, byte_level_backend, sentencepiece_backend, wrap

CHARACTERS = "▁<|>/end otherHiabu.é世\n"
WORDS = ["Hi", " a", "  ", "\n", "é", "世", ".", "u"]


def character_backend(**parts: object) -> Backend:
    """Every character is a token; `parts` are the normalizer and the pre-tokenizer."""
    vocabulary = {text: i for i, text in enumerate(["<unk>", *dict.fromkeys(CHARACTERS)])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    backend.add_special_tokens([AddedToken(OTHER, special=True, normalized=False)])
    return backend


def stripping_backend() -> Backend:
    backend = character_backend()
    tokens = [
        AddedToken("<end>", special=True, lstrip=True, normalized=False),
        AddedToken("<other>", special=True, rstrip=True, normalized=False),
    ]
    backend.add_special_tokens(tokens)
    return backend


BACKENDS = {
    "byte_level": (byte_level_backend(), (EOS, OTHER)),
    "sentencepiece": (sentencepiece_backend(), ("</s>",)),
    "prepend": (
        character_backend(
            normalizer=normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        ),
        (EOS, OTHER),
    ),
    "first": (
        character_backend(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
        (EOS, OTHER),
    ),
    "always": (
        character_backend(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")),
        (EOS, OTHER),
    ),
    "stripping": (stripping_backend(), ("<end>", "<other>")),
}
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)


def usual(backend: Backend, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("name", BACKENDS)
@given(data=st.data())
def test_plain_parts_without_control_tokens_change_nothing(name: str, data: st.DataObject) -> None:
    backend, tokens = BACKENDS[name]
    encoder = PlainTextEncoder(backend, tokens)
    control = st.sampled_from(tokens)
    parts = data.draw(
        st.lists(
            st.tuples(TEXTS, st.just(True)) | st.tuples(TEXTS | control, st.just(False)),
            max_size=6,
        )
    )
    assert encoder.encode(parts) == usual(backend, "".join(text for text, _ in parts))


@pytest.mark.parametrize("name", BACKENDS)
@given(data=st.data())
def test_a_control_token_in_a_plain_part_is_text(name: str, data: st.DataObject) -> None:
    backend, tokens = BACKENDS[name]
    encoder = PlainTextEncoder(backend, tokens)
    control_ids = {backend.token_to_id(token) for token in tokens}
    forged = data.draw(st.lists(st.sampled_from([*WORDS, *tokens]), max_size=5).map("".join))
    first, last = tokens[0], tokens[-1]
    ids = encoder.encode([(f"{first}a ", False), (forged, True), (f"u{last}", False)])
    assert [i for i in ids if i in control_ids] == [ids[0], ids[-1]]
    assert all(i < backend.get_vocab_size() for i in ids)
    text = usual(backend, f"a {forged}u".replace("<", ".").replace("|", "."))
    assert len(ids) >= len([i for i in text if i not in control_ids])


def test_text_parts_that_join_to_a_control_token_stay_text() -> None:
    backend, tokens = BACKENDS["byte_level"]
    encoder = PlainTextEncoder(backend, tokens)
    assert encoder.encode([("<|en", False), ("", True), ("d|>", False)]) == list(b"<|end|>")
    assert encoder.encode([]) == []
    assert encoder.encode([("", True)]) == []


def test_the_separator_in_a_text_gives_no_token() -> None:
    encoder = PlainTextEncoder(*BACKENDS["byte_level"])
    assert encoder.encode([(EOS, False), (f"u{BEFORE}u", True)])[1:] == [ord("u")] * 2


def test_a_vocabulary_that_spells_a_control_token_does_not_give_it() -> None:
    vocabulary = {text: i for i, text in enumerate(["<unk>", *"<end>u", EOS])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    assert usual(backend, EOS) == [vocabulary[EOS]]
    ids = PlainTextEncoder(backend, [EOS]).encode([(EOS, True)])
    assert vocabulary[EOS] not in ids


def test_another_spelling_that_the_tokenizer_knows_is_text() -> None:
    """A token with `normalized` is found after the normalizer has changed the text."""
    backend = character_backend(normalizer=normalizers.Lowercase())
    backend.add_special_tokens([AddedToken("<end>", special=True, normalized=True)])
    end = backend.token_to_id("<end>")
    assert usual(backend, "<END>") == [end]
    encoder = PlainTextEncoder(backend, ["<end>"])
    assert end not in encoder.encode([("<END>", True)])
    assert encoder.encode([("<end>", False), ("hi", True)])[0] == end


def test_tokens_that_are_not_control_tokens_stay_tokens() -> None:
    backend = byte_level_backend()
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    parts = [(f"<think>{EOS}{OTHER}", True)]
    ids = PlainTextEncoder(backend).encode(parts)
    assert ids == [backend.token_to_id("<think>"), *EOS.encode(), *OTHER.encode()]
    plain = PlainTextEncoder(backend, ["<think>", "not a token"])
    assert plain.encode(parts) == list(f"<think>{EOS}{OTHER}".encode())


def test_a_tokenizer_encodes_parts() -> None:
    tokenizer = wrap(byte_level_backend())
    assert tokenizer.added_tokens == {EOS, OTHER}
    assert tokenizer.encode_parts([("u", False), (EOS, True)]) == list(f"u{EOS}".encode())
    assert tokenizer.encode_parts([(EOS, False)]) == tokenizer.encode(EOS)
    assert len(tokenizer.encode(EOS)) == 1
