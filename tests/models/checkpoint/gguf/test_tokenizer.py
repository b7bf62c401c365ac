"""Compares tokenizers built from GGUF metadata with transformers' conversion and with facts."""

import random
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers.integrations.gguf import convert_gguf_tokenizer

from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufValue, read_gguf
from stonechat_models.checkpoint.gguf.tokenizer import SPACE, SPLITS, adds_bos, build_tokenizer
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import UnsupportedModelError
from tests.models.tiny_gguf import vocabulary

TEXTS = [
    "Hello, world! It's 1,234.56 or 2026-11-22.",
    "  two  spaces\n\n\tand a tab\r\nand a return ",
    "def f(x):\n    return x ** 2  # ok\n\n\n",
    "日本語のテキスト, зима, été, e\u0301, ½ ² ٣٤٥ Ⅷ",
    "😀👩‍👩‍👧‍👦\u00a0x\u3000y\u200d",
    "<|im_start|>user\nhi<|im_end|>\n<think>",
    "DON'T don't I'LL we're",
    "",
    " ",
    "\n",
    "a\x00b",
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    alphabet = "abc XYZ 0123 .,;!?\n\t\r'\"éß日本😀\u200d\u0301<|>_=+-/\\"
    return ["".join(rng.choices(alphabet, k=50)) for _ in range(count)]


def gguf_of(metadata: dict[str, GgufValue]) -> GgufFile:
    return GgufFile(Path("x.gguf"), {"general.architecture": "llama", **metadata}, {})


def byte_level(pre: str) -> GgufFile:
    tokens, types, merges = vocabulary()
    return gguf_of(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [*tokens],
            "tokenizer.ggml.token_type": [*types],
            "tokenizer.ggml.merges": [*merges],
        }
    )


def by_transformers(gguf: GgufFile) -> Tokenizer:
    keys = {"model": "tokenizer_type", "pre": "pre_tokenizer_type"}
    prefix = "tokenizer.ggml."
    options = {
        keys.get(key.removeprefix(prefix), key.removeprefix(prefix)): value
        for key, value in gguf.metadata.items()
        if key.startswith(prefix)
    }
    tokenizer: Tokenizer = convert_gguf_tokenizer(gguf.architecture, options)[0]
    return tokenizer


def assert_same(actual: Tokenizer, expected: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = actual.encode(text, add_special_tokens=False).ids
        assert ids == expected.encode(text, add_special_tokens=False).ids, text
        assert actual.decode(ids, skip_special_tokens=False) == text


def test_the_default_model_splits_digits_and_otherwise_equals_transformers(
    default_model_files: ModelFiles,
) -> None:
    # transformers groups digits for this family; the model's own tokenizer.json splits them.
    assert default_model_files.gguf is not None
    expected = by_transformers(read_gguf(default_model_files.gguf))
    actual = Tokenizer.from_file(str(default_model_files.folder / "tokenizer.json"))
    words = [t for t in TEXTS + random_texts(500) if not any(c.isnumeric() for c in t)]
    assert_same(actual, expected, words)
    expected.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert_same(actual, expected, TEXTS + random_texts(2000))
    assert actual.get_vocab_size() == 49152


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "tekken", "gpt-4o", "llama-bpe"])
def test_byte_level_equals_transformers(pre: str) -> None:
    gguf = byte_level(pre)
    texts = [unicodedata.normalize("NFC", text) for text in TEXTS + random_texts(300)]
    assert_same(build_tokenizer(gguf), by_transformers(gguf), texts)


def test_qwen_composes_characters() -> None:
    decomposed, composed = (
        build_tokenizer(byte_level("qwen2")).encode(t).ids for t in ("e\u0301", "é")
    )
    assert decomposed == composed
    others = [build_tokenizer(byte_level("gpt-2")).encode(t).ids for t in ("e\u0301", "é")]
    assert others[0] != others[1]


def test_special_tokens_are_whole_and_special() -> None:
    tokens = vocabulary()[0]
    tokenizer = build_tokenizer(byte_level("qwen2"))
    ids = tokenizer.encode("a<|im_end|><think>", add_special_tokens=False).ids
    assert ids[1:] == [tokens.index("<|im_end|>"), tokens.index("<think>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>"


def test_sentencepiece_equals_transformers() -> None:
    gguf = sentencepiece()
    actual, expected = build_tokenizer(gguf), by_transformers(gguf)
    texts = ["hello there", "hell o", "héllo  there\n", "o\u20ac", "the hello", "hello" * 5]
    for text in texts:
        ids = actual.encode(text, add_special_tokens=False).ids
        assert ids == expected.encode(text, add_special_tokens=False).ids, text
        assert actual.decode(ids) == text


def test_bos_is_added_by_flag_or_family() -> None:
    assert adds_bos(sentencepiece())
    assert adds_bos(byte_level("llama-bpe"))
    assert not adds_bos(byte_level("qwen2"))
    assert build_tokenizer(sentencepiece()).encode("the").tokens == ["<s>", f"{SPACE}the"]


def test_an_unknown_split_or_kind_is_refused() -> None:
    assert "of-tomorrow" not in SPLITS
    with pytest.raises(UnsupportedModelError, match="of-tomorrow"):
        build_tokenizer(byte_level("of-tomorrow"))
    with pytest.raises(UnsupportedModelError, match="kind t5"):
        build_tokenizer(gguf_of({"tokenizer.ggml.model": "t5"}))


def sentencepiece() -> GgufFile:
    pieces = [
        "he",
        "ll",
        "hell",
        "hello",
        f"{SPACE}t",
        f"{SPACE}the",
        "re",
        "there",
        f"{SPACE}hello",
    ]
    pieces += [f"{SPACE}h", f"{SPACE}he", f"{SPACE}hell", "th", "the", f"{SPACE}there"]
    characters = sorted({c for piece in pieces for c in piece})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, *characters]
    types: list[GgufValue] = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(characters))]
    scores: list[GgufValue] = [0.0] * 259
    scores += [-float(i) for i in range(len(pieces) + len(characters))]
    return gguf_of(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [*tokens],
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 0,
        }
    )
