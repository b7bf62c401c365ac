"""Tokenizers of encoders give the ids of transformers' BERT, and of SentencePiece itself."""

import base64
import io
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, models, normalizers

from stonechat_models.character_map import check_character_map
from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufValue
from stonechat_models.checkpoint.gguf.tokenizer import build_tokenizer
from stonechat_models.errors import ModelLoadError
from stonechat_models.text.tokenizer import Tokenizer as TextTokenizer
from tests.models.checkpoint.gguf.test_tokenizer import TEXTS as OTHERS
from tests.models.tiny_gguf import vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-[]()#éüß日本語한😀½"
WORDS = ("the", "cat", "run", "##ning", "caf\u00e9", "cafe", "un", "##able", "[unused1]", "##日")
TEXTS = [
    *OTHERS,
    "The CAT's running: Café, CAFE\u0301, unable, Straße",
    "世界 ok 日本語 cat日本cat",
    "a\x00b\x07c\ufffdd\u200de \u00a0f\u3000g\u2028h",
    "x" * 101 + " " + "cat" * 40,
    "zzz unknowñ Ελλάδα עברית हिन्दी 한국어 Ⅷ ﬁ ①",
    "[CLS] a [SEP] [MASK] [UNK] [unused1] [mask]",
    "\u2581a \u2581 ##b ##",
    "mail@example.com/path?x=1&y=2 — “quoted” …",
]
IDS = {"padding": 0, "unknown": 1, "cls": 2, "seperator": 3, "mask": 4}


def file_of(architecture: str, tokenizer: dict[str, GgufValue], **values: GgufValue) -> GgufFile:
    own = {f"{architecture}.{key}": value for key, value in values.items()}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    return GgufFile(Path("x.gguf"), {"general.architecture": architecture, **metadata, **own}, {})


def words(*, cased: bool) -> list[str]:
    capital = [*"ABCXYZ", "The", "Cat", "É"] if cased else []
    letters = [*CHARACTERS, *(f"##{letter}" for letter in CHARACTERS)]
    return [*SPECIAL, *letters, *WORDS, *capital]


def phantom(token: str, kind: int) -> str:
    if kind == 3:
        return token
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def bert_file(tokens: list[str], **changes: GgufValue) -> GgufFile:
    types = [3 if token in SPECIAL else 1 for token in tokens]
    ids = {f"{name}_token_id": value for name, value in IDS.items()}
    stored = [phantom(token, kind) for token, kind in zip(tokens, types, strict=True)]
    return file_of(
        "bert", {"model": "bert", "tokens": [*stored], "token_type": [*types], **ids, **changes}
    )


def assert_same(actual: Any, expected: Any, texts: list[str]) -> None:
    for text in texts:
        ids = expected(text)["input_ids"]
        assert actual.encode(text, add_special_tokens=True).ids == ids, text
    pair = expected(texts[0], texts[1])
    encoded = actual.encode(texts[0], texts[1], add_special_tokens=True)
    assert encoded.ids == pair["input_ids"]
    assert encoded.type_ids == pair["token_type_ids"]


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("says", [False, True], ids=["guessed", "said"])
def test_word_pieces_equal_transformers(cased: bool, says: bool) -> None:
    """A file without a word on it tells cases apart if its vocabulary does."""
    tokens = words(cased=cased or says)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    expected = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=not cased)
    flags: dict[str, GgufValue] = {"normalizer.lowercase": not cased} if says else {}
    assert_same(build_tokenizer(bert_file(tokens, **flags)), expected, TEXTS)


def test_ollama_keeps_words_in_brackets_and_may_name_no_ends() -> None:
    tokens = words(cased=False)
    expected = build_tokenizer(bert_file(tokens))
    file = bert_file(tokens)
    for key in ("cls", "seperator"):
        del file.metadata[f"tokenizer.ggml.{key}_token_id"]
    stored = file.metadata["tokenizer.ggml.tokens"]
    assert isinstance(stored, list)
    stored[stored.index("\u2581[unused1]")] = "[unused1]"
    actual = build_tokenizer(file)
    for text in TEXTS:
        assert actual.encode(text).ids == expected.encode(text).ids


def train_unigram() -> sentencepiece.SentencePieceProcessor:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefé日本語ßü", k=rng.randint(1, 6))) for _ in range(200)]
    lines = [" ".join(rng.choices(vocabulary, k=8)) for _ in range(400)]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="unigram",
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())


def unigram_file(model: sentencepiece.SentencePieceProcessor, **changes: GgufValue) -> GgufFile:
    """As llama.cpp stores an XLM-RoBERTa: `<s>`, `<pad>` and the others come first."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces][3:]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    ids = {"bos": 0, "padding": 1, "eos": 2, "unknown": 3, "seperator": 2, "cls": 0}
    return file_of(
        "bert",
        {
            "model": "t5",
            "pre": "default",
            "tokens": [*special, *(piece for piece, _ in pieces), "<mask>"],
            "scores": [0.0] * 4 + [score for _, score in pieces] + [0.0],
            "token_type": [3, 3, 3, 2] + [1] * len(pieces) + [3],
            "precompiled_charsmap": [*proto.normalizer_spec.precompiled_charsmap],
            "add_space_prefix": True,
            **{f"{name}_token_id": value for name, value in ids.items()},
            **changes,
        },
    )


@pytest.mark.parametrize("is_ollamas", [False, True])
def test_unigram_equals_sentencepiece(is_ollamas: bool) -> None:
    """Ollama's file of snowflake-arctic-embed2 spells the map of characters in base64."""
    model = train_unigram()
    file = unigram_file(model, remove_extra_whitespaces=False)
    if is_ollamas:
        key = "tokenizer.ggml.precompiled_charsmap"
        numbers: Any = file.metadata[key]
        file.metadata[key] = [*base64.b64encode(bytes(numbers)).decode()]
    actual = build_tokenizer(file)
    rng = random.Random(1)
    letters = [*"abcdefé日本語ßü  \t\n.ﬁ①ｱ한😀", "e\u0301"]
    texts = [*TEXTS, *("".join(rng.choices(letters, k=40)) for _ in range(300))]
    for text in texts:
        if "<" in text or "\u2581" in text:  # special tokens, and a space that is spelled out
            continue
        ids = [i + 1 if i > 2 else 3 for i in model.encode(text)]
        assert actual.encode(text).ids == [0, *ids, 2], text
    (first,), (second,) = (actual.encode(text, add_special_tokens=False).ids for text in "ab")
    assert actual.encode("a", "b").ids == [0, first, 2, 2, second, 2]


def byte_file(architecture: str, pre: str, **changes: GgufValue) -> GgufFile:
    tokens, types, merges = vocabulary()
    tokenizer: dict[str, GgufValue] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*tokens],
        "token_type": [*types],
        "merges": [*merges],
        "bos_token_id": tokens.index("<|im_start|>"),
        "eos_token_id": tokens.index("<|im_end|>"),
        "add_bos_token": True,
        "add_eos_token": True,
    }
    return file_of(architecture, {**tokenizer, **changes}, pooling_type=1)


@pytest.mark.parametrize(
    ("architecture", "pre", "num_between"),
    [("bert", "roberta-bpe", 2), ("modern-bert",) * 2 + (1,)],
)
def test_byte_level_pairs(architecture: str, pre: str, num_between: int) -> None:
    tokenizer = build_tokenizer(byte_file(architecture, pre))
    begin, end = (tokenizer.token_to_id(f"<|im_{name}|>") for name in ("start", "end"))
    (first,), (second,) = (tokenizer.encode(text, add_special_tokens=False).ids for text in "xy")
    assert tokenizer.encode("x").ids == [begin, first, end]
    assert tokenizer.encode("x", "y").ids == [begin, first, *[end] * num_between, second, end]


def test_a_text_ends_only_in_models_that_do_not_continue_it() -> None:
    file = byte_file("qwen3", "qwen2")
    end = build_tokenizer(file).token_to_id("<|im_end|>")
    assert build_tokenizer(file).encode("x").ids[-1] == end
    del file.metadata["qwen3.pooling_type"]
    assert build_tokenizer(file).encode("x").ids[-1] != end
    file.metadata["qwen3.pooling_type"] = 3
    file.metadata["tokenizer.ggml.add_eos_token"] = False
    assert build_tokenizer(file).encode("x").ids[-1] != end


@pytest.mark.parametrize(
    "change",
    [
        {"precompiled_charsmap": [1, 2, 3]},
        {"precompiled_charsmap": ["x"]},
        {"scores": [1.0]},
        {"scores": 3},
        {"unknown_token_id": 10**6},
        {"tokens": []},
    ],
    ids=str,
)
def test_damaged_unigrams_are_refused(change: dict[str, GgufValue]) -> None:
    from stonechat_models.model_file import reading

    file = unigram_file(train_unigram(), **change)
    with pytest.raises(ModelLoadError, match=r"x\.gguf"), reading(file.path):
        build_tokenizer(file).encode("a")


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf"])
def test_published_maps_of_characters_pass(rule: str) -> None:
    """All that SentencePiece has by name. The first one is its default."""
    from sentencepiece import sentencepiece_model_pb2

    spec = sentencepiece_model_pb2.NormalizerSpec()
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule)
    spec.ParseFromString(normalizer.serialized_normalizer_spec())
    assert len(spec.precompiled_charsmap) > 100_000
    check_character_map(spec.precompiled_charsmap)


def test_damaged_maps_of_characters_are_refused(tmp_path: Path) -> None:
    """In GGUF files and in tokenizer.json. Some lead out of the map only at some characters."""
    whole = bytes(unigram_file(train_unigram()).metadata["tokenizer.ggml.precompiled_charsmap"])  # type: ignore[arg-type]
    text = "".join(map(chr, range(1, 0x3000)))
    rng = random.Random(3)
    check_character_map(whole)
    num_panics = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[rng.randrange(4, len(whole))] = rng.randrange(256)
        try:
            normalizer = normalizers.Precompiled(bytes(damaged))
        except Exception:  # its texts are no UTF-8
            continue
        try:
            normalizer.normalize_str(text)
        except BaseException:
            num_panics += 1
            with pytest.raises(ValueError, match="map of characters"):
                check_character_map(bytes(damaged))
            tokenizer = Tokenizer(models.Unigram([("a", 0.0)], 0, False))
            tokenizer.normalizer = normalizers.Sequence([normalizer])
            tokenizer.save(str(tmp_path / "tokenizer.json"))
            with pytest.raises(ModelLoadError, match="map of characters"):
                TextTokenizer.from_folder(tmp_path)
    assert num_panics > 0
