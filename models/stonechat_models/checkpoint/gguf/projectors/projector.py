"""What is known of a type of vision or audio parts, which llama.cpp calls a projector."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from stonechat_models.checkpoint.gguf.metadata import Config
from stonechat_models.checkpoint.gguf.reader import GgufFile


@dataclass(frozen=True, slots=True)
class Whole:
    """A model of several parts: its type and class in transformers."""

    model_type: str
    class_name: str
    text_type: str = ""
    """The type of its text. Empty: the same as without the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projector:
    """One type of vision or audio parts."""

    models: Mapping[str, Whole]
    """By the architecture of the language model's file."""
    tower: Callable[[GgufFile], Config]
    """Returns the section of config.json that describes the tower."""
    section: str = "vision_config"
    """The name of that section: this one, or `audio_config`."""
    text: Callable[[GgufFile], Config] = lambda gguf: {}
    """Returns what the config of the text says beside the part, by the text's file."""
    whole: Callable[[GgufFile], Config] = lambda mmproj: {}
    """Returns what config.json says beside its parts."""
    tokens: Mapping[str, str]
    """Keys of config.json, and the tokens whose ids they have. The first one is the placeholder."""
    spare: str = ""
    """Matches tokens that stand for nothing. One of them becomes the placeholder if the vocabulary
    lacks it, as that of files made from a SentencePiece model does."""
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the tokenizer, and their tokens."""
    processor_class: str
    prepare: Callable[[GgufFile], Config]
    """Returns the settings of the image processor or of the feature extractor."""
    processor: Callable[[GgufFile], Config] = lambda mmproj: {}
    """Returns what processor_config.json says beside these settings."""
    names: Mapping[str, str]
    """Names of tensors without `.weight` or `.bias`, or whole; `*` is the number of a layer.
    Tensors with one target are joined, in this order."""
    layouts: Mapping[str, Callable[[GgufFile, np.ndarray], np.ndarray]] = field(
        default_factory=dict
    )
    """Turn the stored values of tensors, float32, into those of parameters; by whole names."""
    chat_template: str | None = None
    """In place of the file's own, if that has no placeholder. Empty: the server knows one."""
    unused: frozenset[str] = frozenset()
    """Tensors that the tower does not compute with."""
    output: tuple[str, int]
    """A tensor, and which of its dimensions is the size of the language model's states."""


def within(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return a table of names whose targets begin with `prefix`."""
    return {name: prefix + target for name, target in names.items()}
