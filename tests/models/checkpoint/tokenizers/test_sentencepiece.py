"""Converted SentencePiece models, compared with the SentencePiece package itself."""

import io
import json
import random
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer as Backend

from stonechat_models.checkpoint.tokenizers.conversion import name_special_tokens
from stonechat_models.checkpoint.tokenizers.sentencepiece import convert_sentencepiece
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.text.tokenizer import Tokenizer

LETTERS = "abcdefghij"
TEXTS = (
    "abc def",
    "  two é",
    "a  b   c",
    "hi\nx \n y",
    "ﬁ ① ｱ",
    "",
    " ",
    "<0x4",
    "\u2581a b",
    "世界 ok 👩",
    "trailing  ",
    "\ta",
)


def random_lines(count: int) -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 6))) for _ in range(150)]
    return [" ".join(rng.choices(words, k=8)) for _ in range(count)]


def train(folder: Path, kind: str, **settings: Any) -> sentencepiece.SentencePieceProcessor:
    """Write a tokenizer.model that is trained on random words."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    byte_fallback = settings.setdefault("byte_fallback", True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(random_lines(300)),
        model_writer=buffer,
        model_type=kind,
        vocab_size=320 if byte_fallback else 64,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    (folder / "tokenizer.model").write_bytes(buffer.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())


def convert(folder: Path) -> Tokenizer:
    names = convert_sentencepiece(folder / "tokenizer.model", folder / "tokenizer.json")
    name_special_tokens(folder, folder / "tokenizer_config.json", names)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "settings",
    [
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},  # Llama's
        {
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,  # Gemma's
        },
        {},  # T5's
        {"byte_fallback": False},
        {"normalization_rule_name": "nmt_nfkc_cf", "add_dummy_prefix": False},
        {"bos_id": -1, "pad_id": 3, "control_symbols": ["<sep>"]},
    ],
    ids=str,
)
def test_ids_and_texts_are_those_of_sentencepiece(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    reference = train(tmp_path, kind, **settings)
    tokenizer = convert(tmp_path)
    rng = random.Random(1)
    noise = ["".join(rng.choices(LETTERS + "  \n", k=40)) for _ in range(50)]
    for text in (*TEXTS, *noise, *random_lines(20)):
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids, text
        if 0 not in ids:  # SentencePiece writes a sign of its own for unknown text
            assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.vocab_size == reference.get_piece_size()


def test_control_tokens_become_one_token(tmp_path: Path) -> None:
    reference = train(tmp_path, "bpe", control_symbols=["[INST]"], user_defined_symbols=["<think>"])
    tokenizer = convert(tmp_path)
    assert tokenizer.special_tokens == {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    control, thought = (reference.piece_to_id(text) for text in ("[INST]", "<think>"))
    assert tokenizer.special_ids == {0, 1, 2, control}
    assert tokenizer.eos_token_ids == {2}
    hello = reference.encode("abc")
    assert tokenizer.encode("<s>[INST]abc</s>") == [1, control, *hello, 2]
    assert tokenizer.encode("abc<think>") == [*hello, thought]
    assert tokenizer.encode_parts([("[INST]", False), ("abc</s>", True)])[:1] == [control]
    assert 2 not in tokenizer.encode_parts([("[INST]", False), ("abc</s>", True)])


def test_the_files_beside_it_count(tmp_path: Path) -> None:
    reference = train(tmp_path, "bpe")
    size = reference.get_piece_size()
    content = {
        "eos_token": {"content": "<|im_end|>"},
        "bos_token": None,
        "chat_template": "{{ messages }}",
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            str(size + 1): {"content": "<|im_end|>", "special": True},
            str(size + 2): {"content": "<think>", "special": False},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size}))
    tokenizer = convert(tmp_path)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.special_tokens["bos_token"] == "<s>"
    assert tokenizer.encode("<|im_start|><|im_end|><think>") == [size, size + 1, size + 2]
    assert size + 1 in tokenizer.special_ids
    assert size + 2 not in tokenizer.special_ids


@pytest.mark.parametrize(("legacy", "is_repeated"), [(None, True), (True, True), (False, False)])
def test_the_space_before_the_first_word(
    tmp_path: Path, legacy: bool | None, is_repeated: bool
) -> None:
    """After a control token it is there too, unless the model's config says otherwise."""
    reference = train(tmp_path, "bpe", normalization_rule_name="identity")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    convert(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    with_space = [reference.id_to_piece(i) for i in reference.encode("b")]
    assert backend.encode("b").tokens == with_space
    after = backend.encode("<s>b").tokens[1:]
    assert after == (with_space if is_repeated else ["b"])


def test_the_config_can_leave_that_space_out(tmp_path: Path) -> None:
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    reference = train(tmp_path, "bpe", add_dummy_prefix=False, **settings)
    train(tmp_path, "bpe", **settings)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": false}')
    tokenizer = convert(tmp_path)
    assert tokenizer.encode("b") == reference.encode("b")
    assert tokenizer.decode(tokenizer.encode(" b")) == " b"


def test_the_map_of_special_tokens_counts(tmp_path: Path) -> None:
    train(tmp_path, "bpe", control_symbols=["<|im_end|>"])
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    special = convert(tmp_path).special_tokens
    assert (special["eos_token"], special["bos_token"]) == ("<|im_end|>", "<s>")


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    train(tmp_path, "unigram", byte_fallback=False)
    path = tmp_path / "tokenizer.model"
    content = path.read_bytes()
    damaged = [b"\n", b"\n\xff\xff\xff\xff\x7f", bytes(64), content[: len(content) // 2 + 1]]
    damaged += [content[:i] + bytes([content[i] ^ 255]) + content[i + 1 :] for i in range(40)]
    damaged += [content[a:b] for a, b in pairwise(range(1, 400, 17))]
    for data in damaged:
        path.write_bytes(data)
        with suppress(ModelLoadError):  # and nothing else is raised
            convert(tmp_path)
    with pytest.raises(ModelLoadError, match=r"cannot read .*tokenizer\.model"):
        convert(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"999": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("added_tokens.json", '{"y": "x"}'),
    ],
)
def test_an_error_names_the_file_it_is_in(tmp_path: Path, name: str, content: str) -> None:
    train(tmp_path, "bpe", byte_fallback=False)
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelLoadError, match=f"cannot read {tmp_path / name}"):
        convert(tmp_path)


@pytest.mark.parametrize("settings", [{"treat_whitespace_as_suffix": True}, {"kind": "char"}])
def test_other_kinds_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    kind = settings.pop("kind", "bpe")
    train(tmp_path, kind, byte_fallback=False, **settings)
    with pytest.raises(UnsupportedModelError, match=r"add the model's tokenizer\.json"):
        convert(tmp_path)
