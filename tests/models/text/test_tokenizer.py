import json
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizers import EOS, OTHER, byte_level_backend, sentencepiece_backend, wrap

BYTE_LEVEL = byte_level_backend()
LLAMA = sentencepiece_backend()
GEMMA = sentencepiece_backend(prefix=False)


def ids_of(backend: Backend) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, backend.get_vocab_size() - 1), max_size=12)


@given(ids_of(BYTE_LEVEL), st.booleans())
def test_byte_level_decodes_as_the_library(ids: list[int], skip: bool) -> None:
    tokenizer = wrap(BYTE_LEVEL)
    assert tokenizer.decode(ids, skip) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=20))
def test_byte_level_round_trip(text: str) -> None:
    tokenizer = wrap(BYTE_LEVEL)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize("backend", [LLAMA, GEMMA], ids=["llama", "gemma"])
@given(text=st.text(max_size=8), data=st.data())
def test_sentencepiece_decodes_as_the_library(
    backend: Backend, text: str, data: st.DataObject
) -> None:
    tokenizer = wrap(backend, "</s>")
    byte_ids = [2 + byte for byte in text.encode()]
    ids = [*data.draw(ids_of(backend).map(lambda i: [x for x in i if not 2 <= x < 258])), *byte_ids]
    ids += data.draw(ids_of(backend).map(lambda i: [x for x in i if not 2 <= x < 258]))
    for skip in (False, True):
        assert tokenizer.decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("backend", [BYTE_LEVEL, LLAMA, GEMMA], ids=["bytes", "llama", "gemma"])
@given(data=st.data())
def test_the_pieces_of_a_text_are_its_decoding(backend: Backend, data: st.DataObject) -> None:
    tokenizer = wrap(backend, EOS if backend is BYTE_LEVEL else "</s>")
    ids = data.draw(ids_of(backend))
    pieces = tokenizer.text_pieces(ids)
    assert len(pieces) == len(ids)
    pairs = list(zip(ids, pieces, strict=True))
    visible = [piece for i, piece in pairs if i not in tokenizer.special_ids]
    assert "".join(visible) == tokenizer.decode(ids)
    assert all(p == tokenizer.token_text(i) for i, p in pairs if i in tokenizer.special_ids)


def test_a_piece_has_whole_characters() -> None:
    tokenizer = wrap(BYTE_LEVEL)
    ids = [*"aé".encode()]
    assert tokenizer.text_pieces(ids) == ["a", "", "é"]
    assert tokenizer.text_pieces(ids[:2]) == ["a", "\ufffd"]
    assert tokenizer.text_pieces([]) == []


def test_sentencepiece_bytes_are_exact() -> None:
    tokenizer = wrap(LLAMA, "</s>")
    spell = {t: tokenizer.token_bytes(i) for t, i in LLAMA.get_vocab().items()}
    assert spell["<0xE2>"] == b"\xe2"
    assert spell["\u2581Hi"] == b" Hi"
    assert spell["Hi"] == b"Hi"
    assert spell["世"] == "世".encode()
    assert spell["</s>"] == b"</s>"
    assert tokenizer.bytes_at_start(LLAMA.token_to_id("\u2581Hi")) == b"Hi"


@pytest.mark.parametrize(
    "decoder",
    [decoders.WordPiece(), decoders.BPEDecoder(), decoders.Metaspace(), None],
    ids=["wordpiece", "suffix", "metaspace", "none"],
)
def test_other_decoders_join_the_same(decoder: decoders.Decoder | None) -> None:
    tokens = ["hel", "##lo", "wor", "ld</w>", "\u2581the", "end", "."]
    backend = Backend(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="."))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = wrap(backend)
    for ids in ([0, 1, 2], [2, 3, 5], [4, 4, 5], [5, 6], [4], [0, 4, 6, 5]):
        assert tokenizer.decode(ids) == backend.decode(ids)


def test_added_tokens_are_plain_text() -> None:
    backend = byte_level_backend()
    backend.add_tokens([AddedToken("é½ <x>", normalized=False)])
    tokenizer = wrap(backend)
    (token_id,) = tokenizer.encode("é½ <x>")
    assert tokenizer.token_bytes(token_id) == "é½ <x>".encode()
    assert token_id not in tokenizer.special_ids


def test_special_ids_and_unknown_ids() -> None:
    tokenizer = wrap(BYTE_LEVEL)
    eos, other = BYTE_LEVEL.token_to_id(EOS), BYTE_LEVEL.token_to_id(OTHER)
    assert tokenizer.special_ids == {eos, other}
    assert tokenizer.eos_token_ids == {eos}
    assert tokenizer.decode([104, eos, 105]) == tokenizer.decode([104, 105])
    for unknown in (-1, tokenizer.vocab_size, 10**9):
        assert tokenizer.token_bytes(unknown) == b""
    assert tokenizer.token_text(0xE2) == "\ufffd"
    assert tokenizer.token_bytes(0xE2) == b"\xe2"


def write_folder(folder: Path, **files: object) -> Path:
    byte_level_backend().save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_reads_what_a_folder_says(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        tokenizer_config={
            "eos_token": {"content": EOS},
            "bos_token": "ab",
            "chat_template": [
                {"name": "default", "template": "D"},
                {"name": "tool_use", "template": "T"},
            ],
        },
        generation_config={"eos_token_id": [7, 8]},
        config={"eos_token_id": 9},
    )
    tokenizer = Tokenizer.from_folder(folder)
    eos = tokenizer.encode(EOS)[0]
    assert tokenizer.eos_token_ids == {7, 8, eos}
    assert dict(tokenizer.special_tokens) == {"eos_token": EOS, "bos_token": "ab"}
    assert tokenizer.encode("ab")[0] in tokenizer.special_ids  # the config calls it special
    assert dict(tokenizer.chat_templates) == {"default": "D", "tool_use": "T"}
    (folder / "chat_template.jinja").write_text("own")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat_template == "own"
    assert tokenizer.chat_templates["rag"] == "R"
    assert tokenizer.path == folder / "tokenizer.json"


def test_end_tokens_of_the_model_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, config={"text_config": {"eos_token_id": 9}})
    assert Tokenizer.from_folder(folder).eos_token_ids == {9}


def test_a_long_text_is_not_truncated(tmp_path: Path) -> None:
    backend = byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("abcdefghij")) == 10


def test_a_long_text_leaves_other_threads_running() -> None:
    """The other thread runs only if `encode` gives up the interpreter lock by itself."""
    tokenizer = wrap(byte_level_backend())
    text = "hello wide world " * 60_000
    gate, order = threading.Lock(), []
    gate.acquire()
    thread = threading.Thread(target=lambda: order.append(gate.acquire() and "other thread"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # no thread is interrupted
    try:
        thread.start()
        gate.release()
        ids = tokenizer.encode(text)
        order.append("encoded")
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert order == ["other thread", "encoded"]
    assert ids == byte_level_backend().encode(text, add_special_tokens=False).ids


def test_errors_name_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="cannot read"):
        Tokenizer.from_folder(tmp_path)
    write_folder(tmp_path, tokenizer_config=[1])
    with pytest.raises(ModelLoadError, match="is not a JSON object"):
        Tokenizer.from_folder(tmp_path)


def test_the_default_models_tokenizer() -> None:
    folder = resolve_model(EngineConfig(model=""), lambda line: None).folder
    tokenizer = Tokenizer.from_folder(folder)
    library = Backend.from_file(str(folder / "tokenizer.json"))
    text = "Hello, world! 世界 👩‍👩‍👧 e\u0301\n<|im_end|>"
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.eos_token_ids == {0, 2}
    for start in range(0, 49152, 997):
        mixed = [(start * 31 + 17 * k) % 49152 for k in range(40)]
        assert tokenizer.decode(mixed) == library.decode(mixed)


def test_tokens_are_spelled_as_in_the_vocabulary() -> None:
    tokenizer = wrap(BYTE_LEVEL)
    vocabulary = BYTE_LEVEL.get_vocab(with_added_tokens=True)
    assert {tokenizer.token_string(i): i for i in vocabulary.values()} == vocabulary
    assert "\u0120the" in vocabulary
    for unknown in (-1, tokenizer.vocab_size, 2**70):
        assert tokenizer.token_string(unknown) == ""
    assert {tokenizer.token_string(i) for i in tokenizer.added_token_ids} == {EOS, OTHER}


def test_the_class_is_the_usual_one_unless_the_files_name_it() -> None:
    assert wrap(BYTE_LEVEL).tokenizer_class == "PreTrainedTokenizerFast"
