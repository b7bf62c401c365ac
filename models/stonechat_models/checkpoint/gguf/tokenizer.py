"""Builds a `tokenizers.Tokenizer` from a GGUF file's metadata, in well under a second.

Three kinds are supported: `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names how the text is split
first), `llama` (SentencePiece BPE with byte fallback) and `gemma4` (the same, with its merges in
the file). Another kind is refused, since a wrong one produces tokens that are almost right.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.splits import (
    BOS_BY_DEFAULT,
    BYTE_SPLITS,
    COMPOSED,
    IGNORE_MERGES,
    SPLITS,
)
from stonechat_models.errors import UnsupportedModelError

CONTROL, USER_DEFINED = 3, 4
SPACE = "\u2581"
MAX_TOKEN = 4096
"""Characters of a token. The time to find its merges is quadratic in them."""


def build_tokenizer(gguf: GgufFile) -> Tokenizer:
    """Return the tokenizer that a GGUF file describes.

    Raises `UnsupportedModelError` for an unknown kind of tokenizer or an unknown split.
    """
    kind = gguf.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(gguf)
    elif kind in ("llama", "gemma4"):
        tokenizer = _sentencepiece(gguf)
    else:
        raise UnsupportedModelError(
            f"{gguf.path.name}: tokenizers of kind {kind} are not supported; the same model as a "
            "folder of safetensors files may work"
        )
    _add_special_tokens(tokenizer, gguf)
    _add_template(tokenizer, gguf)
    return tokenizer


def adds_bos(gguf: GgufFile) -> bool:
    """Return whether encoding with special tokens begins with BOS.

    The file's flag decides, or else its family.
    """
    flag = gguf.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(flag, bool):
        return flag
    has_pieces = gguf.metadata.get("tokenizer.ggml.model") in ("llama", "gemma4")
    return has_pieces or gguf.metadata.get("tokenizer.ggml.pre") in BOS_BY_DEFAULT


def _byte_level(gguf: GgufFile) -> Tokenizer:
    name = str(gguf.metadata.get("tokenizer.ggml.pre", "default"))
    if name not in SPLITS:
        raise UnsupportedModelError(
            f"{gguf.path.name}: the pre-tokenizer {name} is not supported; the same model as a "
            "folder of safetensors files may work"
        )
    vocab = {token: i for i, token in enumerate(gguf.strings("tokenizer.ggml.tokens"))}
    merges = [_pair(merge) for merge in gguf.strings("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=name in IGNORE_MERGES)
    )
    if name in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = [*_isolated(SPLITS[name]), byte_level, *_isolated(BYTE_SPLITS.get(name, ()))]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _isolated(patterns: tuple[str, ...]) -> list[pre_tokenizers.Split]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(gguf: GgufFile) -> Tokenizer:
    tokens = gguf.strings("tokenizer.ggml.tokens")
    if max(map(len, tokens), default=0) > MAX_TOKEN:
        raise ValueError(f"a token is longer than {MAX_TOKEN} characters")
    if gguf.architecture.startswith("gemma"):  # Gemma writes runs of spaces as real spaces
        tokens = [SPACE * len(t) if t and not t.strip(" ") else t for t in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [_pair(merge) for merge in gguf.strings("tokenizer.ggml.merges")]
    unknown = gguf.integer("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges or merges_of_vocabulary(vocab, _ranks(gguf, tokens)),
            unk_token=tokens[0 if unknown is None else unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    adds_space = gguf.metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
    replace = normalizers.Replace(" ", SPACE)
    prefix = [normalizers.Prepend(SPACE)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, replace])
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _ranks(gguf: GgufFile, tokens: list[str]) -> list[float]:
    """Return the rank of each token in the order of merges; the lowest merges first.

    It is minus the token's score. For Gemma, or without scores, it is the token's id.
    """
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if gguf.architecture.startswith("gemma") or not isinstance(scores, list):
        return [float(i) for i in range(len(tokens))]
    return [-score if isinstance(score, int | float) else 0.0 for score in scores]


def merges_of_vocabulary(vocab: dict[str, int], ranks: list[float]) -> list[tuple[str, str]]:
    """Return every way to make a token of two others, in the order of SentencePiece's merges."""
    merges: list[tuple[float, int, int, str, str]] = []
    for token, i in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((ranks[i], vocab[left], vocab[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _add_special_tokens(tokenizer: Tokenizer, gguf: GgufFile) -> None:
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list):
        return
    special: list[AddedToken] = []
    plain: list[AddedToken] = []
    for i, kind in enumerate(types):
        token = tokenizer.id_to_token(i) if kind in (CONTROL, USER_DEFINED) else None
        if token:
            added = AddedToken(token, normalized=False, special=kind == CONTROL)
            (special if kind == CONTROL else plain).append(added)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_template(tokenizer: Tokenizer, gguf: GgufFile) -> None:
    bos = gguf.integer("tokenizer.ggml.bos_token_id")
    token = None if bos is None else tokenizer.id_to_token(bos)
    if bos is not None and token is not None and adds_bos(gguf):
        tokenizer.post_processor = TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, bos)]
        )
