"""Builds the tokenizers that only encoders have.

`bert` is WordPiece, `t5` is SentencePiece's Unigram. A token of `bert` begins with `▁` if a word
does, and has no `##` otherwise.
"""

import base64

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from stonechat_models.character_map import check_character_map
from stonechat_models.checkpoint.gguf.reader import GgufFile

CONTROL = 3
SPACE = "\u2581"
CASED_SHARE = 0.01
"""A vocabulary with a larger share of tokens with capital letters tells cases apart."""
NO_SCORE = -1e4


def word_pieces(gguf: GgufFile) -> Tokenizer:
    """Return the tokenizer of BERT. Unless the file says, the vocabulary says if case counts."""
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    kinds = types if isinstance(types, list) else []
    tokens = gguf.strings("tokenizer.ggml.tokens")
    kinds = [*kinds, *[0] * (len(tokens) - len(kinds))]
    pieces = [_piece(token, kind == CONTROL) for token, kind in zip(tokens, kinds, strict=False)]
    unknown = gguf.integer("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.WordPiece(
            vocab={piece: i for i, piece in enumerate(pieces)},
            unk_token="[UNK]" if unknown is None else pieces[unknown],
        )
    )
    is_lower = _flag(gguf, "normalizer.lowercase", not _is_cased(pieces))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=is_lower, strip_accents=_flag(gguf, "normalizer.strip_accents", is_lower)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def _piece(token: str, is_control: bool) -> str:
    """Return a token as BERT's own vocabulary spells it."""
    if is_control or (token.startswith("[") and token.endswith("]")):
        return token
    is_start = token.startswith(SPACE) and token != SPACE
    return token[1:] if is_start else f"##{token}"


def _is_cased(pieces: list[str]) -> bool:
    num_capital = sum(piece != piece.lower() and not piece.startswith("[") for piece in pieces)
    return num_capital > CASED_SHARE * len(pieces)


def _flag(gguf: GgufFile, key: str, default: bool) -> bool:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, bool) else default


def unigram(gguf: GgufFile) -> Tokenizer:
    """Return a tokenizer of XLM-RoBERTa's kind.

    Spaces at the ends and repeated ones count for nothing: what a file says of them is the
    converter's guess.
    """
    tokens = gguf.strings("tokenizer.ggml.tokens")
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise ValueError("its tokens have no scores")
    unknown = gguf.integer("tokenizer.ggml.unknown_token_id")
    numbers = [score if isinstance(score, int | float) else NO_SCORE for score in scores]
    vocabulary = list(zip(tokens, map(float, numbers), strict=False))
    tokenizer = Tokenizer(models.Unigram(vocabulary, 0 if unknown is None else unknown, False))
    steps: list[normalizers.Normalizer] = []
    if character_map := _character_map(gguf):
        check_character_map(character_map)
        steps.append(normalizers.Precompiled(character_map))
    steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if _flag(gguf, "add_space_prefix", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme)
    tokenizer.decoder = decoders.Metaspace(SPACE, scheme)
    return tokenizer


def _character_map(gguf: GgufFile) -> bytes:
    """Return what characters become. Some of Ollama's files have the letters of its base64."""
    items = gguf.metadata.get("tokenizer.ggml.precompiled_charsmap")
    if not isinstance(items, list):
        return b""
    if items and isinstance(items[0], str):
        return base64.b64decode("".join(map(str, items)), validate=True)
    return bytes(item & 255 for item in items if isinstance(item, int))
