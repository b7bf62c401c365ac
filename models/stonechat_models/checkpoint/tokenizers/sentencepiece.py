"""Converts SentencePiece models to the `tokenizers` library, without the SentencePiece package.

The file is a protocol buffer, whose fields are those of `sentencepiece_model.proto`. The result
encodes a text as SentencePiece does. Tokens outside its vocabulary come from the files beside it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from stonechat_models.checkpoint.gguf.encoder_tokenizers import SPACE
from stonechat_models.checkpoint.gguf.tokenizer import MAX_TOKEN, merges_of_vocabulary
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_file import read_json, reading

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
NEVER_CHOSEN = 1e4
"""How far below all scores is that of a piece which no text becomes."""
SPECIAL_NAMES = ("unk_token", "bos_token", "eos_token", "pad_token")


@dataclass(frozen=True, slots=True)
class _Model:
    """The vocabulary, and what is done to a text before it is split."""

    pieces: list[tuple[str, float, int]]
    """The text, the score and the type of each piece."""
    kind: int
    special_ids: tuple[int, ...]
    """In the order of `SPECIAL_NAMES`; -1: there is none."""
    byte_fallback: bool
    adds_space: bool
    removes_spaces: bool
    character_map: bytes
    is_reversed: bool
    """Whether spaces end words instead of beginning them, or are not escaped."""


def convert_sentencepiece(path: Path, target: Path) -> dict[str, str]:
    """Write the SentencePiece model at `path` to `target`, as a tokenizer.json.

    Returns the texts of bos_token, eos_token, … that it has. Raises `ModelLoadError` for a file
    that is not valid, and its subclass `UnsupportedModelError` for a model that the `tokenizers`
    library cannot follow.
    """
    config = read_json(path.parent / "tokenizer_config.json") or {}
    with reading(path):
        model = _read(path.read_bytes())
        if config.get("add_prefix_space") is False:
            model = replace(model, adds_space=False)
        tokenizer = _tokenizer(path, model, is_legacy=config.get("legacy") is not False)
        _add_tokens(tokenizer, model, path.parent, config)
    tokenizer.save(str(target))
    names = zip(SPECIAL_NAMES, model.special_ids)
    return {name: model.pieces[i][0] for name, i in names if 0 <= i < len(model.pieces)}


def _tokenizer(path: Path, model: _Model, *, is_legacy: bool) -> Tokenizer:
    if model.kind not in (UNIGRAM, BPE) or model.is_reversed:
        raise UnsupportedModelError(
            f"{path}: SentencePiece models of this kind are not supported; add the model's "
            "tokenizer.json"
        )
    tokenizer = Tokenizer(_unigram(model) if model.kind == UNIGRAM else _bpe(model))
    steps: list[Any] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.removes_spaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.adds_space and is_legacy:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if model.adds_space and not is_legacy:  # not after special tokens within a text
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    strip = [decoders.Strip(" ", 1, 0)] if model.adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _unigram(model: _Model) -> models.Unigram:
    lowest = min(score for _, score, _ in model.pieces) - NEVER_CHOSEN
    vocabulary = [
        (piece, score if kind in (NORMAL, USER_DEFINED) else lowest)
        for piece, score, kind in model.pieces
    ]
    return models.Unigram(vocabulary, model.special_ids[0], model.byte_fallback)


def _bpe(model: _Model) -> models.BPE:
    if max(len(piece) for piece, _, _ in model.pieces) > MAX_TOKEN:
        raise ValueError(f"a piece is longer than {MAX_TOKEN} characters")
    vocabulary = {piece: i for i, (piece, _, _) in enumerate(model.pieces)}
    usable = {p: i for p, i in vocabulary.items() if model.pieces[i][2] in (NORMAL, USER_DEFINED)}
    return models.BPE(
        vocab=vocabulary,
        merges=merges_of_vocabulary(usable, [-score for _, score, _ in model.pieces]),
        unk_token=model.pieces[model.special_ids[0]][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _add_tokens(tokenizer: Tokenizer, model: _Model, folder: Path, config: dict[str, Any]) -> None:
    """Add the tokens that are one piece wherever they stand, and those outside the vocabulary."""
    for piece, _, kind in model.pieces:
        if kind in (UNKNOWN, CONTROL):
            tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True)])
        elif kind == USER_DEFINED and SPACE not in piece:
            tokenizer.add_tokens([AddedToken(piece, normalized=False)])
    tokens = read_json(folder / "added_tokens.json") or {}
    with reading(folder / "added_tokens.json"):
        added = {int(i): AddedToken(text, normalized=False) for text, i in tokens.items()}
    with reading(folder / "tokenizer_config.json"):
        for key, value in (config.get("added_tokens_decoder") or {}).items():
            flags = {f: bool(value.get(f)) for f in ("special", "lstrip", "rstrip", "normalized")}
            added[int(key)] = AddedToken(value["content"], **flags)
    for i, token in sorted(added.items()):
        known = tokenizer.token_to_id(token.content)
        if known is None and i != tokenizer.get_vocab_size():
            raise ValueError(f"the added token {token.content} cannot have the id {i}")
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _read(data: bytes) -> _Model:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(value))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    special_ids = tuple(
        _signed(trainer.get(number, default)) for number, default in ((40, 0), (41, 1), (42, 2))
    )
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN]
    if not unknown:
        raise ValueError("it has no piece for unknown text")
    return _Model(
        pieces=pieces,
        kind=trainer.get(3, UNIGRAM),
        special_ids=(unknown[0], *special_ids[1:], _signed(trainer.get(43, -1))),
        byte_fallback=bool(trainer.get(35, 0)),
        adds_space=bool(normalizer.get(3, 1)),
        removes_spaces=bool(normalizer.get(4, 1)),
        character_map=normalizer.get(2, b""),
        is_reversed=bool(trainer.get(24, 0)) or not normalizer.get(5, 1),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return fields.get(1, b"").decode(), score, fields.get(3, NORMAL)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field: an int, or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is not a protocol buffer")
        if position + size > len(data):
            raise ValueError("it is cut short")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("it is not a protocol buffer")
