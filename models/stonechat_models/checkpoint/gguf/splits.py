r"""How byte-level tokenizers split a text before they merge bytes, by `tokenizer.ggml.pre`.

The patterns are those of the models' own `tokenizer.json` files, in Oniguruma's syntax. ggml's
tokenizer has them in an adapted form. A vocabulary with an unknown split is refused, since another
one produces tokens that are almost right.
"""

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = _WORDS % "{1,3}"
QWEN2_SPLIT = _WORDS % ""
QWEN35_SPLIT = (
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_SPLIT = (
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BAILING_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_NO_HAN = r"&&[^\p{Han}]"


def _cased(suffix: str, but: str = "") -> str:
    """Return a word that ends in lower case, or begins in upper case; `but` limits its letters."""
    upper, lower = f"[{_UPPER}{but}]", f"[{_LOWER}{but}]"
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{suffix}|{first}{upper}+{lower}*{suffix}"


_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_SPLIT = _cased("") + r"|\p{N}" + _REST
GPT4O_SPLIT = _cased(_SUFFIX + "?") + r"|\p{N}{1,3}" + _REST
KIMI_SPLIT = (
    r"[\p{Han}]+|" + _cased(_SUFFIX + "?", _NO_HAN) + r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
AFMOE_SPLITS = (
    r"\p{N}+",
    r"\A\p{N}{1,2}(?=(?:\p{N}{3})*+\z)|\p{N}{3}",
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0eff"
    "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
    DEEPSEEK3_SPLITS[2],
)
"""Digits make groups of three from the end of a number. The models' files look for the end behind
each group, `\\p{N}{1,3}(?=(?:\\p{N}{3})*+(?!\\p{N}))`, which takes quadratic time. Here only the
first group looks for it, and so below."""
TINY_AYA_SPLITS = (
    r"(?<!\d)\d++\b",
    r"\A(?!\d++\z)[\s\S]+|\A\d{1,2}(?=(?:\d{3})*+\z)|\d{3}",
    GPT4O_SPLIT,
)
"""As `\\d{1,3}(?=(?:\\d{3})*\\b)`, and then the last one."""
_LEAD = r"\d{1,2}(?=(?:\d{3})*+(?!\d))"
_UNTIL_GROUP = rf"(?:[^\d]+(?:{_LEAD})?)*"
SUPERBPE_SPLITS = (
    r"\p{N}+",
    rf"\A(?:{_LEAD}{_UNTIL_GROUP}|[^\d]+(?:{_LEAD})?{_UNTIL_GROUP})|\d{{3}}{_UNTIL_GROUP}",
)
"""The second is as `(?=(?:\\d{3})+(?!\\d))`: a piece begins where a group of three does."""
BLOOM_SPLIT = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
FALCON_SPLITS = (r"[\p{P}$+<=>^~|`]+", GPT2_SPLIT)
_JAIS2_SPACES = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
JAIS2_SPLIT = LLAMA3_SPLIT.removesuffix(r"|\s+(?!\S)|\s+") + _JAIS2_SPACES + r"|\s{1,2}(?!\S)|\s"
YOUTU_SPLITS = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u30ff]+",
    _cased(_SUFFIX + "?") + r"|\p{N}" + _REST,
)
EXAONE_MOE_SPLIT = (
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_CODER_SPLITS = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, DIGIT)
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
DEEPSEEK_LLM_SPLITS = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _DEEPSEEK_CJK,
    DIGIT,
)

_LLAMA3_NAMES = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
)
_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {
    (GPT2_SPLIT,): (
        *("gpt-2", "default", "olmo", "mpt", "phi-2", "jais", "roberta-bpe", "trillion", "mellum"),
        *("granite-docling", "exaone4", "a.x-4.0", "gigachat", "modern-bert"),
    ),
    (DIGIT, GPT2_SPLIT): (
        *("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b", "exaone"),
    ),
    (LLAMA3_SPLIT,): (
        *_LLAMA3_NAMES,
        *("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"),
    ),
    (QWEN2_SPLIT,): (
        *("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "kormo"),
        "grok-2",
    ),
    (QWEN35_SPLIT,): ("qwen35",),
    (TEKKEN_SPLIT,): ("tekken",),
    (GPT4O_SPLIT,): ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
    TINY_AYA_SPLITS: ("tiny_aya", "cohere2moe"),
    DEEPSEEK_LLM_SPLITS: ("deepseek-llm",),
    DEEPSEEK_CODER_SPLITS: ("deepseek-coder",),
    AFMOE_SPLITS: ("afmoe",),
    YOUTU_SPLITS: ("youtu",),
    (EXAONE_MOE_SPLIT,): ("exaone-moe",),
    (r"[^\n]+|\n+", QWEN2_SPLIT): ("laguna",),
    SUPERBPE_SPLITS: ("superbpe",),
    (BLOOM_SPLIT,): ("bloom", "gpt3-finnish"),
    (BLOOM_SPLIT, DIGIT): ("viking",),
    FALCON_SPLITS: ("falcon",),
    (JAIS2_SPLIT,): ("jais-2",),
    DEEPSEEK3_SPLITS: ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
    (r"\p{N}{1,3}", _WORDS % "+"): ("minicpm5",),
    (KIMI_SPLIT,): ("kimi-k2",),
    (SEED_SPLIT,): ("seed-coder",),
    (BAILING_SPLIT,): ("bailingmoe", "bailingmoe2", "llada-moe"),
}
SPLITS: dict[str, tuple[str, ...]] = {
    name: patterns for patterns, names in _NAMES.items() for name in names
}
"""The patterns that split the text, one after the other."""
BYTE_SPLITS = {"falcon": (r"\p{N}+", "[0-9][0-9][0-9]")}
"""What splits the characters that stand for bytes, as the steps behind a model's own bytes do."""
IGNORE_MERGES = frozenset(_LLAMA3_NAMES) - {"falcon3"}
IGNORE_MERGES |= {"tekken", "gpt-4o", "llama4", "glm4", "minicpm5", "youtu"}
"""Families that look up a whole word in the vocabulary before they merge its parts."""
COMPOSED = frozenset({"qwen2", "qwen35", "modern-bert"})
"""Families that first compose the text (NFC), which only their tokenizer.json says."""
BOS_BY_DEFAULT = frozenset(_LLAMA3_NAMES) - {"falcon3"} | {"tekken"}
"""Families that begin a text with BOS unless the file says otherwise."""
