"""Reads how a folder's text encoder makes embeddings: the files that sentence-transformers writes.

`modules.json` lists modules that run one after the other: the transformer, a pooling, and perhaps
dense layers and a normalisation. Each has a folder of its own, such as `1_Pooling`. Only the known
modules are served: the names in the file are names of Python classes, and none is imported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from stonechat_models.checkpoint.hf_config import JsonObject, shown
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_file import read_json, reading

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
PACKAGE = "sentence_transformers."
SENTENCE_EMBEDDING = "sentence_embedding"
CROSS_ENCODER = "CrossEncoder"
"""The kind of model that scores pairs of texts."""
TASK = "transformer_task"
MAX_LENGTH = 1 << 24
"""Larger lengths in a file mean that there is no limit."""

StepKind = Literal["Dense", "LayerNorm", "Normalize"]
FIRST_MODULES = ("Transformer", "Pooling")
STEPS: dict[str, StepKind | None] = {
    "Dense": "Dense",
    "LayerNorm": "LayerNorm",
    "Normalize": "Normalize",
    "Dropout": None,  # it has no effect outside training
}
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Each pooling, and the key with which older files switch it on. Several are concatenated, in this
order."""


@dataclass(frozen=True, slots=True)
class EmbeddingStep:
    """A module after the pooling, its folder, and what its config.json says."""

    kind: StepKind
    folder: Path
    config: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderFiles:
    """How a folder's encoder makes embeddings. Without any such files, the mean of all tokens."""

    pooling: tuple[str, ...] = ("mean",)
    skips_prompt: bool = False
    """Whether the tokens of a prompt before the text are left out of the pooling."""
    steps: tuple[EmbeddingStep, ...] = ()
    max_length: int = 0
    """In tokens; 0: the files do not say."""
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts to put before an input, by name."""
    default_prompt: str = ""
    """The name of the prompt that an input gets if none is named."""


def transformer_folder(folder: Path) -> Path:
    """Return where config.json and the weights are: `folder`, or the subfolder that it names."""
    modules = _read_modules(folder)
    if not modules or _kind(modules[0]) != "Transformer":
        return folder
    return _subfolder(folder, modules[0])


def has_embedder_files(folder: Path) -> bool:
    """Whether files say how the model of `folder` makes embeddings. They may be wrong."""
    if not (folder / MODULES_FILE).is_file():
        return False
    return (read_json(folder / SETTINGS_FILE) or {}).get("model_type") != CROSS_ENCODER


def module_config(folder: Path, index: int) -> tuple[Path, JsonObject]:
    """Return the folder of a module of modules.json, and its settings."""
    return _config(folder, _read_modules(folder)[index])


def module_kinds(folder: Path) -> list[str]:
    """Return the classes of the modules in modules.json; empty if there is no such file."""
    return [_kind(module) for module in _read_modules(folder)]


def read_embedder_files(folder: Path) -> EmbedderFiles | None:
    """Read the files of an embedding model; None if `folder` has none, or is a cross-encoder.

    Raises `ModelLoadError` for a file that is not right, and `UnsupportedModelError` with its name
    for a module that is not served.
    """
    modules = _read_modules(folder)
    if not modules:
        return None
    settings = JsonObject(str(folder / SETTINGS_FILE), read_json(folder / SETTINGS_FILE) or {})
    kind = settings.read("model_type", str, "SentenceTransformer")
    if kind == CROSS_ENCODER:
        return None
    if kind != "SentenceTransformer":
        raise UnsupportedModelError(
            f"{settings.source}: models of type {shown(kind)} are neither text "
            "embedders nor rerankers, which are all that is served"
        )
    for i, module in enumerate(modules):
        if _kind(module) not in (FIRST_MODULES[i : i + 1] or STEPS):
            raise _unsupported(folder, module)
    if len(modules) < 2:
        raise ModelLoadError(f"{folder / MODULES_FILE} lists no Pooling; download it again")
    steps = []
    for module in modules[2:]:
        step = STEPS[_kind(module)]
        if step is not None:
            steps.append(EmbeddingStep(step, *_embedding_config(folder, module)))
    pooling = _embedding_config(folder, modules[1])[1]
    prompts = settings.read("prompts", dict[str, str], {})
    default = settings.read("default_prompt_name", str, "")
    if default and default not in prompts:
        raise settings.error("default_prompt_name", f"is {shown(default)}, which is no prompt")
    transformer = transformer_settings(_subfolder(folder, modules[0]))
    return EmbedderFiles(
        pooling=_poolings(pooling),
        skips_prompt=not pooling.read("include_prompt", bool, True),
        steps=tuple(steps),
        max_length=max_length(_subfolder(folder, modules[0]), transformer),
        lower_case=transformer.read("do_lower_case", bool, False),
        prompts=prompts,
        default_prompt=default,
    )


def _read_modules(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of modules.json; empty if there is none."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return []
    with reading(path):
        modules = msgspec.convert(
            json.loads(path.read_text(encoding="utf-8")), list[dict[str, Any]]
        )
    if not modules:
        raise ModelLoadError(f"{path} lists no modules; download it again")
    return modules


def _kind(module: Mapping[str, Any]) -> str:
    """Return the class of a module, such as `Pooling`, or its whole name if it is unknown."""
    name = str(module.get("type", ""))
    return name.rpartition(".")[2] if name.startswith(PACKAGE) else name


def _unsupported(folder: Path, module: Mapping[str, Any]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{folder / MODULES_FILE} has the module {shown(module.get('type', ''))}, which is not "
        f"served: only a Transformer, a Pooling, and then any of {', '.join(STEPS)}"
    )


def _subfolder(folder: Path, module: Mapping[str, Any]) -> Path:
    """Return the folder of a module. Raises `ModelLoadError` if it lies outside `folder`."""
    name = str(module.get("path") or "")
    if Path(name).is_absolute() or ".." in Path(name).parts or ":" in name:
        raise ModelLoadError(
            f"{folder / MODULES_FILE} names the folder {shown(name)}, which is outside the model's"
        )
    return folder / name


def _config(folder: Path, module: Mapping[str, Any]) -> tuple[Path, JsonObject]:
    """Return a module's folder and its settings. A normalisation may have none."""
    place = _subfolder(folder, module)
    path = place / "config.json"
    content = read_json(path) if place != folder else {}
    if content is None:
        if _kind(module) != "Normalize":
            raise ModelLoadError(f"{path} is missing; download it")
        content = {}
    config = JsonObject(str(path), content)
    return place, config


def _embedding_config(folder: Path, module: Mapping[str, Any]) -> tuple[Path, JsonObject]:
    """Return the same of a module that makes an embedding of one."""
    place, config = _config(folder, module)
    for key in ("module_input_name", "module_output_name"):
        name = config.read(key, str, SENTENCE_EMBEDDING)
        if name != SENTENCE_EMBEDDING:
            raise UnsupportedModelError(f"{config.source}: {key} {shown(name)} is not served")
    return place, config


def _poolings(config: JsonObject) -> tuple[str, ...]:
    names = config.values.get("pooling_mode")
    if names is None:
        chosen = tuple(name for name, key in POOLINGS.items() if config.read(key, bool, False))
        return chosen or ("mean",)
    chosen = (names,) if isinstance(names, str) else tuple(config.read("pooling_mode", list[str]))
    unknown = [name for name in chosen if name not in POOLINGS]
    if unknown or not chosen:
        raise config.error("pooling_mode", f"is {shown(names)}; known: {', '.join(POOLINGS)}")
    return chosen


def transformer_settings(folder: Path) -> JsonObject:
    """Return sentence_bert_config.json, whose name may have another family than BERT."""
    path = next(iter(sorted(folder.glob("sentence_*_config.json"))), None)
    return JsonObject(str(path), {} if path is None else read_json(path) or {})


def max_length(folder: Path, transformer: JsonObject) -> int:
    """Return the longest input in tokens; 0 if the files name none."""
    length = transformer.size("max_seq_length")
    if not length:
        tokenizer = read_json(folder / "tokenizer_config.json") or {}
        value = tokenizer.get("model_max_length")
        length = int(value) if isinstance(value, int | float) and 0 < value <= MAX_LENGTH else 0
    return length if length <= MAX_LENGTH else 0
