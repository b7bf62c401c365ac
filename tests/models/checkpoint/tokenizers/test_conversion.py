"""Folders without a tokenizer.json: what is converted, where it lies, and what is refused."""

import base64
import json
from pathlib import Path

import pytest

from stonechat_models.checkpoint.tokenizers.conversion import tokenizer_folder, with_tokenizer
from stonechat_models.errors import ModelLoadError
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.checkpoint.tokenizers.test_sentencepiece import train

SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>")


@pytest.fixture
def folder(caches: Path) -> Path:
    """A folder with a configuration and no tokenizer."""
    path = caches / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "mistral", "vocab_size": 320}')
    return path


def converted(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(with_tokenizer(folder, lambda line: None))


def write_tekken(folder: Path, special: tuple[str, ...] = SPECIAL) -> None:
    parts = [bytes([byte]) for byte in range(256)] + [b"he", b"ell", b"hell", b"hello"]
    content = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "num_vocab_tokens": len(parts),
            "default_vocab_size": len(parts) + 10,
            "default_num_special_tokens": 10,
            "version": "v3",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(part).decode(), "token_str": None}
            for i, part in enumerate(parts)
        ],
        "special_tokens": [
            {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(special)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(content))


def test_a_sentencepiece_model_is_converted_without_its_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = train(folder, "bpe")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", None)
    tokenizer = converted(folder)
    assert tokenizer.encode("abc def") == reference.encode("abc def")
    assert tokenizer.special_tokens["eos_token"] == "</s>"
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.chat_template == "{{ messages }}"


def test_token_ids_that_are_not_those_of_the_file_are_refused(folder: Path) -> None:
    train(folder, "unigram")
    (folder / "config.json").write_text('{"model_type": "xglm"}')
    with pytest.raises(ModelLoadError, match=r"not those of tokenizer\.model"):
        converted(folder)


def test_a_tekken_file_says_how_texts_begin_and_end(folder: Path) -> None:
    write_tekken(folder)
    tokenizer = converted(folder)
    assert tokenizer.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    assert tokenizer.eos_token_ids == {2}
    assert {1, 2, 3, 4} <= tokenizer.special_ids
    ids = tokenizer.encode("<s>[INST]hi[/INST]")
    assert ids == [1, 3, 10 + ord("h"), 10 + ord("i"), 4]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.encode("hello") == [10 + 259]


def test_the_config_beside_a_tekken_file_counts(folder: Path) -> None:
    write_tekken(folder, (*SPECIAL[:-1], "<|end|>"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    tokenizer = converted(folder)
    assert tokenizer.special_tokens["eos_token"] == "<|end|>"
    assert "pad_token" not in tokenizer.special_tokens
    assert tokenizer.eos_token_ids == {5}


def test_what_cannot_be_converted_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"neither tokenizer\.json nor"):
        converted(folder)
    (folder / "tokenizer.model").write_bytes(b"\n\x02ab")
    with pytest.raises(ModelLoadError, match=r"cannot read .*tokenizer\.model"):
        converted(folder)
    (folder / "tokenizer.model").write_bytes(base64.b64encode(b"a") + b" 0\n")  # tiktoken's format
    with pytest.raises(ModelLoadError, match="cannot convert its tokenizer"):
        converted(folder)


def test_code_of_the_folder_does_not_run_and_nothing_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = folder / "ran"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    auto_map = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Own"}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (folder / "vocab.json").write_text('{"a": 0}')
    asked: list[str] = []

    def answer(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(ModelLoadError, match="cannot convert its tokenizer"):
        converted(folder)
    assert not asked
    assert not mark.exists()


def test_a_converted_tokenizer_belongs_to_its_folder_and_content(
    folder: Path, tmp_path: Path
) -> None:
    source = folder / "tokenizer.model"
    source.write_bytes(bytes(6 << 20))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "a"}')
    keys = [tokenizer_folder(folder)]
    with source.open("r+b") as file:
        file.seek(source.stat().st_size * 2 // 3)
        file.write(b"x")
    keys.append(tokenizer_folder(folder))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "b"}')
    keys.append(tokenizer_folder(folder))
    assert tokenizer_folder(folder) == keys[-1]
    keys.append(tokenizer_folder(folder.rename(tmp_path / "copy")))
    assert None not in keys
    assert len(set(keys)) == 4
