"""Reads the files beside a `tokenizer.json`: special tokens, end tokens, chat templates."""

from dataclasses import dataclass, field
from pathlib import Path

from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import read_json, reading

MAX_TOKEN_ID = (1 << 31) - 1
SPECIAL_TOKEN_NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)
_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a model folder says of its tokenizer. A field is empty if the folder does not say it."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    """The texts of bos_token, eos_token, …"""
    special_texts: frozenset[str] = frozenset()
    """All texts that the configuration calls special, those of `special_tokens` included."""
    eos_token_ids: frozenset[int] = frozenset()
    """Those of the generation config. If it has none, those of the model's config."""
    chat_templates: dict[str, str] = field(default_factory=dict)
    """Jinja sources by name. The usual template is `default`."""
    tokenizer_class: str = ""
    """The class of transformers that the files are for."""


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the files that `folder` has.

    Raises `ModelLoadError` for a file that cannot be read or is not a JSON object.
    """
    config = read_json(folder / "special_tokens_map.json") or {}
    config |= read_json(folder / "tokenizer_config.json") or {}
    special_tokens = {
        name: text for name in SPECIAL_TOKEN_NAMES if (text := _token_text(config.get(name)))
    }
    return TokenizerFiles(
        special_tokens=special_tokens,
        special_texts=frozenset(special_tokens.values()) | _other_special_texts(config),
        eos_token_ids=_eos_token_ids(folder),
        chat_templates=_chat_templates(folder, config),
        tokenizer_class=_text_of(config.get("tokenizer_class")),
    )


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def _token_text(value: object) -> str | None:
    """Return the text of a token that is written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _other_special_texts(config: dict[str, object]) -> frozenset[str]:
    tokens: list[object] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(name)
        if isinstance(value, dict):
            tokens.extend(value.values())
        elif isinstance(value, list):
            tokens.extend(value)
    added_tokens = config.get("added_tokens_decoder")
    if isinstance(added_tokens, dict):
        tokens.extend(t for t in added_tokens.values() if isinstance(t, dict) and t.get("special"))
    return frozenset(text for item in tokens if (text := _token_text(item)))


def _eos_token_ids(folder: Path) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        config = read_json(folder / name) or {}
        value = config.get("eos_token_id")
        if value is None and isinstance(inner := config.get("text_config"), dict):
            value = inner.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        token_ids = frozenset(i for i in ids if isinstance(i, int) and not isinstance(i, bool))
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) <= MAX_TOKEN_ID:
            raise ModelLoadError(
                f"{folder / name}: an eos_token_id is not a token's id; download the file again"
            )
        if token_ids:
            return token_ids
    return frozenset()


def _chat_templates(folder: Path, config: dict[str, object]) -> dict[str, str]:
    """Return the chat templates, as transformers does: template files replace all others.

    `chat_template.json`, the older kind of file, counts only without the newer ones. If the files
    have no usual template, that of the configuration stays.
    """
    files = {
        path.stem: _text(path) for path in (folder / "additional_chat_templates").glob("*.jinja")
    }
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        files[_DEFAULT] = _text(template_file)
    older = _templates_in(read_json(folder / "chat_template.json") or {})
    others = older or _templates_in(config)
    if not files:
        return others
    default = {_DEFAULT: others[_DEFAULT]} if _DEFAULT in others else {}
    return default | files


def _templates_in(source: dict[str, object]) -> dict[str, str]:
    value = source.get("chat_template")
    if isinstance(value, str):
        return {_DEFAULT: value}
    if not isinstance(value, list):
        return {}
    return {
        str(item["name"]): str(item["template"])
        for item in value
        if isinstance(item, dict) and "name" in item and "template" in item
    }


def _text(path: Path) -> str:
    with reading(path):
        return path.read_text(encoding="utf-8")
