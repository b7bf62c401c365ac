"""Builds a `tokenizers.Tokenizer` from a GGUF file's metadata, in well under a second.

Five kinds are supported: `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names how the text is split
first), `llama` (SentencePiece BPE with byte fallback), `gemma4` (the same, with its merges in the
file), and of encoders `bert` and `t5`. Another kind is refused, since a wrong one produces tokens
that are almost right.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from stonechat_models.checkpoint.gguf.encoder_tokenizers import CONTROL, SPACE, unigram, word_pieces
from stonechat_models.checkpoint.gguf.metadata import pooling
from stonechat_models.checkpoint.gguf.reader import GgufFile
from stonechat_models.checkpoint.gguf.splits import (
    BOS_BY_DEFAULT,
    BYTE_SPLITS,
    COMPOSED,
    IGNORE_MERGES,
    SPLITS,
)
from stonechat_models.errors import UnsupportedModelError

USER_DEFINED = 4
PIECES = frozenset({"llama", "gemma4", "bert", "t5"})
"""Kinds that begin a text with BOS unless the file says otherwise."""
FRAMING = frozenset({"bert", "t5"})
"""Those that end it with EOS too."""
BERT_NAMES = {"bos": ("cls", "[CLS]"), "eos": ("seperator", "[SEP]")}
"""BERT's own names of the tokens at both ends of a text, and their usual texts."""
DOUBLE_END = frozenset({"t5", "roberta-bpe"})
"""Kinds and splits with EOS twice between the texts of a pair."""
MAX_TOKEN = 4096
"""Characters of a token. The time to find its merges is quadratic in them."""


def build_tokenizer(gguf: GgufFile) -> Tokenizer:
    """Return the tokenizer that a GGUF file describes.

    Raises `UnsupportedModelError` for an unknown kind of tokenizer or an unknown split.
    """
    kind = gguf.metadata.get("tokenizer.ggml.model")
    builds = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
        "gemma4": _sentencepiece,
        "bert": word_pieces,
        "t5": unigram,
    }
    if kind not in builds:
        raise UnsupportedModelError(
            f"{gguf.path.name}: tokenizers of kind {kind} are not supported; the same model as a "
            "folder of safetensors files may work"
        )
    tokenizer = builds[kind](gguf)
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
    has_pieces = gguf.metadata.get("tokenizer.ggml.model") in PIECES
    return has_pieces or gguf.metadata.get("tokenizer.ggml.pre") in BOS_BY_DEFAULT


def adds_eos(gguf: GgufFile) -> bool:
    """Return whether encoding with special tokens ends with EOS.

    Only that of a model for embeddings or scores does: others continue the text.
    """
    is_framing = gguf.metadata.get("tokenizer.ggml.model") in FRAMING
    flag = gguf.metadata.get("tokenizer.ggml.add_eos_token", is_framing)
    return flag is True and (is_framing or pooling(gguf) != "")


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
    """Let encoding put tokens around a text, and around both texts of a pair."""
    kind, pre = (gguf.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    begin = _end_token(tokenizer, gguf, "bos") if adds_bos(gguf) else {}
    end = _end_token(tokenizer, gguf, "eos") if adds_eos(gguf) else {}
    if not begin and not end:
        return
    single, second = [*begin, "$A", *end], ["$B", *end]
    first = [*single, *end] if DOUBLE_END & {kind, pre} else single
    if kind == "bert":
        second = [f"{piece}:1" for piece in second]
    tokenizer.post_processor = TemplateProcessing(
        single=single, pair=[*first, *second], special_tokens=[*(begin | end).items()]
    )


def _end_token(tokenizer: Tokenizer, gguf: GgufFile, name: str) -> dict[str, int]:
    """Return the token at an end of a text, and its id; nothing if the file has none."""
    own, text = BERT_NAMES[name]
    is_bert = gguf.metadata.get("tokenizer.ggml.model") == "bert"
    for key in (own, name) if is_bert else (name, own):
        token_id = gguf.integer(f"tokenizer.ggml.{key}_token_id")
        token = None if token_id is None else tokenizer.id_to_token(token_id)
        if token_id is not None and token is not None:
            return {token: token_id}
    token_id = tokenizer.token_to_id(text) if is_bert else None
    return {} if token_id is None else {text: token_id}
