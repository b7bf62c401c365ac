"""Reads the files beside a `tokenizer.json`: special tokens, end tokens, chat templates."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from stonechat_models.errors import ModelLoadError

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
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


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the files that `folder` has.

    Raises `ModelLoadError` for a file that cannot be read or is not a JSON object.
    """
    config = {**_read_json(folder / "special_tokens_map.json")}
    config.update(_read_json(folder / "tokenizer_config.json"))
    special_tokens = {
        name: text for name in SPECIAL_TOKEN_NAMES if (text := _token_text(config.get(name)))
    }
    return TokenizerFiles(
        special_tokens=special_tokens,
        special_texts=frozenset(special_tokens.values()) | _other_special_texts(config),
        eos_token_ids=_eos_token_ids(folder),
        chat_templates=_chat_templates(folder, config),
    )


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}; download it again: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a JSON object; download it again")
    return content


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
        config = _read_json(folder / name)
        value = config.get("eos_token_id")
        if value is None and isinstance(inner := config.get("text_config"), dict):
            value = inner.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        token_ids = frozenset(i for i in ids if isinstance(i, int))
        if token_ids:
            return token_ids
    return frozenset()


def _chat_templates(folder: Path, config: dict[str, object]) -> dict[str, str]:
    """Return the chat templates. Separate template files override those of the configuration."""
    templates: dict[str, str] = {}
    for source in (_read_json(folder / "chat_template.json"), config):
        value = source.get("chat_template")
        if isinstance(value, str):
            templates[_DEFAULT] = value
        elif isinstance(value, list):
            templates.update(
                (str(item["name"]), str(item["template"]))
                for item in value
                if isinstance(item, dict) and "name" in item and "template" in item
            )
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        templates[_DEFAULT] = template_file.read_text(encoding="utf-8")
    return templates
