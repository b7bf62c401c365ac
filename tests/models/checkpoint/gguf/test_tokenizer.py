"""Compares tokenizers built from GGUF metadata with transformers' conversion and with facts."""

import random
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers.integrations import gguf as transformers_gguf

from stonechat_models.checkpoint.gguf.reader import GgufFile, GgufValue, read_gguf
from stonechat_models.checkpoint.gguf.splits import SPLITS
from stonechat_models.checkpoint.gguf.tokenizer import SPACE, adds_bos, build_tokenizer
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
    if not hasattr(transformers_gguf, "convert_gguf_tokenizer"):
        pytest.skip("transformers before 5.18 reads these tokenizers otherwise")
    tokenizer: Tokenizer = transformers_gguf.convert_gguf_tokenizer(gguf.architecture, options)[0]
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


@pytest.mark.parametrize(
    "pre",
    [
        *("gpt-2", "qwen2", "qwen35", "tekken", "gpt-4o", "llama-bpe", "dbrx", "falcon-h1"),
        *("lfm2", "minimax-m2", "kanana2", "deepseek-r1-qwen"),
    ],
)
def test_byte_level_equals_transformers(pre: str) -> None:
    gguf = byte_level(pre)
    texts = [unicodedata.normalize("NFC", text) for text in TEXTS + random_texts(300)]
    assert_same(build_tokenizer(gguf), by_transformers(gguf), texts)


def splits_by(patterns: tuple[str, ...]) -> pre_tokenizers.Sequence:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits])


def pieces(pre: str, text: str) -> list[str]:
    return [piece for piece, _ in splits_by(SPLITS[pre]).pre_tokenize_str(text)]


GROUPS_OF_THREE = {
    "afmoe": (r"\p{N}{1,3}(?=(?:\p{N}{3})*+(?!\p{N}))", *SPLITS["afmoe"][2:]),
    "tiny_aya": (r"\d{1,3}(?=(?:\d{3})*\b)", SPLITS["gpt-4o"][0]),
    "superbpe": (r"\p{N}+", r"(?=(?:\d{3})+(?!\d))"),
}
"""The patterns of the models' own tokenizer.json, which take quadratic time."""


@pytest.mark.parametrize("pre", GROUPS_OF_THREE)
def test_groups_of_digits_are_those_of_the_models_own_patterns(pre: str) -> None:
    own, rng = splits_by(GROUPS_OF_THREE[pre]), random.Random(0)
    for alphabet in ("0123456789", "1a", "1\u00b2\u0663\u2167", "12\u0663 a_\n\u00b2\u0301日.-"):
        for _ in range(300):
            text = "".join(rng.choices(alphabet, k=rng.randrange(1, 26)))
            assert pieces(pre, text) == [piece for piece, _ in own.pre_tokenize_str(text)], text


def test_falcon_and_bloom_split_as_their_own_tokenizers() -> None:
    falcon = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    own = r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
    bloom = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(own), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for pre, expected in (("falcon", falcon), ("bloom", bloom)):
        actual = build_tokenizer(byte_level(pre)).pre_tokenizer
        for text in TEXTS + random_texts(300):
            assert actual.pre_tokenize_str(text) == expected.pre_tokenize_str(text), text


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        ("viking", "a b(12, c", ["a", " b", "(", "1", "2", ",", " c"]),
        (
            "jais-2",
            "It's 1234" + " " * 11 + "a",
            ["It", "'s", " ", "123", "4", " " * 8, "  ", " a"],
        ),
        ("glm4 chatglm-bpe", "It'S 12345", ["It", "'S", " ", "123", "45"]),
        ("deepseek-v3 hunyuan-dense joyai-llm", "x=12345", ["x", "=", "123", "45"]),
        ("kormo", "It'S  12\n", ["It", "'S", " ", " ", "1", "2", "\n"]),
        ("minicpm5", "It'S  1234\n", ["It", "'S", "  ", "123", "4", "\n"]),
        ("deepseek-v3 hunyuan-dense", "日本ab.cd", ["日本", "ab", ".cd"]),
        ("deepseek-v3 hunyuan-dense", "日本語テxてl!\n", ["日本語テ", "x", "て", "l", "!\n"]),
        ("deepseek-v3 hunyuan-dense", "e\u0301a", ["e\u0301a"]),
        ("deepseek-llm", "ab cd, ef  12", ["ab", " cd", ",", " ef", "  ", "1", "2"]),
        ("deepseek-llm", "日本ªb\n", ["日本", "ª", "b", "\n"]),
        ("deepseek-llm", "\u1f7d\u03ce\u03b1", ["\u1f7d", "\u03ce\u03b1"]),
        ("deepseek-coder", "a_b 日x12", ["a", "_", "b", " ", "日", "x", "1", "2"]),
        ("kimi-k2", "中文English混合", ["中文", "English", "混合"]),
        ("kimi-k2", "aB's 1234!\n", ["a", "B's", " ", "123", "4", "!\n"]),
        ("seed-coder", "a b!\n12", ["a", " b", "!", "\n", "1", "2"]),
        ("bailingmoe bailingmoe2", "a'S\n\nb12", ["a", "'S", "\n\n", "b", "1", "2"]),
        ("tiny_aya", "1234567 aB", ["1", "234", "567", " a", "B"]),
        ("exaone4 granite-docling trillion", "It's  123!\n", ["It", "'s", " ", " 123", "!", "\n"]),
        ("exaone smollm", "It's 123", ["It", "'s", " ", "1", "2", "3"]),
        ("afmoe", "1234567 日本x.cd", ["1", "234", "567", " ", "日本", "x", ".cd"]),
        ("superbpe", "a b 1234567,12", ["a b ", "1", "234", "567", ",", "12"]),
        ("youtu", "aBc's한국、日本12", ["a", "Bc's", "한국", "、", "日本", "1", "2"]),
        ("laguna", "It's 12\n\n b", ["It", "'s", " ", "1", "2", "\n\n", " b"]),
        ("exaone-moe", "가 나 a's 12\n\n", ["가 나 a", "'s", " ", "1", "2", "\n\n"]),
        ("gpt-4o minimax-m2", "aBc/\n1234", ["a", "Bc", "/\n", "123", "4"]),
        ("qwen35", "e\u0301a 12", ["e\u0301a", " ", "1", "2"]),
    ],
)
def test_texts_are_split_as_by_the_models_own_tokenizers(
    names: str, text: str, expected: list[str]
) -> None:
    for name in names.split():
        assert pieces(name, text) == expected, name


@pytest.mark.parametrize(
    ("pre", "is_whole"), [("llama-bpe", True), ("glm4", True), ("youtu", True), ("qwen2", False)]
)
def test_words_of_the_vocabulary_that_no_merge_makes(pre: str, is_whole: bool) -> None:
    """The `ignore_merges` of the models' own tokenizer.json."""
    metadata = byte_level(pre).metadata
    lists = {"tokens": "zqzqz", "token_type": 1}
    more = {f"tokenizer.ggml.{k}": [*metadata[f"tokenizer.ggml.{k}"], v] for k, v in lists.items()}
    tokens = build_tokenizer(gguf_of({**metadata, **more})).encode("zqzqz").tokens
    assert (tokens == ["zqzqz"]) == is_whole
    assert "".join(tokens) == "zqzqz"


def gemma4() -> GgufFile:
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), (SPACE, "t"), (SPACE, SPACE), ("hell", "o")]
    merges += [("\n", "\n"), (f"{SPACE}t", "he")]
    singles = ["h", "e", "l", "o", "t", SPACE, "\n", "é"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<|channel>"]
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokens = [*special, *byte_tokens, *singles, *("".join(pair) for pair in merges)]
    kinds: list[GgufValue] = [3, 3, 3, 2, 3, 4, *[6] * 256]
    return gguf_of(
        {
            "general.architecture": "gemma4",
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": [*tokens],
            "tokenizer.ggml.scores": [-1000.0] * len(tokens),
            "tokenizer.ggml.token_type": kinds + [1] * (len(tokens) - len(kinds)),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.unknown_token_id": 3,
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.ggml.add_bos_token": True,
        }
    )


def test_gemma4_merges_in_the_order_of_its_file() -> None:
    gguf = gemma4()
    actual, expected = build_tokenizer(gguf), by_transformers(gguf)
    texts = ["hello the hello", "  two\n\n\nhell", "é€", "<|turn>hello<|channel>the", "", " ", "x"]
    for text in texts:
        ids = actual.encode(text, add_special_tokens=False).ids
        assert ids == expected.encode(text, add_special_tokens=False).ids, text
        assert actual.decode(ids, skip_special_tokens=False) == text
    assert actual.encode("hello the").tokens == ["<bos>", "hello", f"{SPACE}the"]


@pytest.mark.parametrize("pre", ["qwen2", "qwen35"])
def test_qwen_composes_characters(pre: str) -> None:
    decomposed, composed = (
        build_tokenizer(byte_level(pre)).encode(t).ids for t in ("e\u0301", "é")
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
    assert adds_bos(byte_level("lfm2"))
    assert not adds_bos(byte_level("qwen2"))
    assert build_tokenizer(sentencepiece()).encode("the").tokens == ["<s>", f"{SPACE}the"]


def test_an_unknown_split_or_kind_is_refused() -> None:
    assert "of-tomorrow" not in SPLITS
    with pytest.raises(UnsupportedModelError, match="of-tomorrow"):
        build_tokenizer(byte_level("of-tomorrow"))
    with pytest.raises(UnsupportedModelError, match="kind rwkv"):
        build_tokenizer(gguf_of({"tokenizer.ggml.model": "rwkv"}))


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
