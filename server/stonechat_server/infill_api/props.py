"""What clients of llama.cpp's server are told of a model."""

from typing import TYPE_CHECKING

import msgspec

from stonechat_models import __version__

if TYPE_CHECKING:
    from stonechat_server.catalog.entry import Entry


class PropsSettings(msgspec.Struct, kw_only=True):
    """What every request gets."""

    n_ctx: int
    """The context length in tokens; 0 as long as it is unknown."""


class PropsModalities(msgspec.Struct, kw_only=True):
    """What a model takes beside text."""

    vision: bool
    audio: bool


class Props(msgspec.Struct, kw_only=True):
    """A model. As long as it is not loaded, its numbers are 0 and its texts are empty."""

    default_generation_settings: PropsSettings
    total_slots: int
    """How many sequences run at once."""
    model_alias: str
    model_path: str
    """The model's own name: paths of this machine are not told."""
    chat_template: str
    """Jinja."""
    bos_token: str
    eos_token: str
    modalities: PropsModalities
    build_info: str


def props_of(name: str, entry: "Entry") -> Props:
    """The answer of `/props`."""
    served = entry.served
    info = None if served is None else served.engine.model
    tokens = {} if served is None else served.engine.tokenizer.special_tokens
    return Props(
        default_generation_settings=PropsSettings(n_ctx=entry.max_model_len or 0),
        total_slots=0 if info is None else info.max_num_seqs,
        model_alias=name,
        model_path=entry.name if info is None else info.name,
        chat_template="" if served is None else served.templates.default.source,
        bos_token=tokens.get("bos_token", ""),
        eos_token=tokens.get("eos_token", ""),
        modalities=PropsModalities(
            vision=info is not None and info.images is not None,
            audio=info is not None and info.audio is not None,
        ),
        build_info=f"stonechat-{__version__}",
    )
