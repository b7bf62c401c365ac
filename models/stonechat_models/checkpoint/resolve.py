"""Finds the files of the model that the user names.

A model is the default one, a GGUF file, a local folder, a name of the Hugging Face hub, or an
alias. Each becomes a `ModelFiles`: a folder of Hugging Face files, and the files that hold the
weights.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stonechat_models.checkpoint.adapter.files import Adapter, is_adapter, refuse_adapter_alone
from stonechat_models.checkpoint.adapter.names import locate_adapter, locate_adapters
from stonechat_models.checkpoint.cache import Progress, sampled_hash
from stonechat_models.checkpoint.gguf.composite import composite_folder
from stonechat_models.checkpoint.gguf.convert import converted_folder
from stonechat_models.checkpoint.gguf.embedder import NO_POOLING, embeds_last
from stonechat_models.checkpoint.gguf.metadata import pooling
from stonechat_models.checkpoint.gguf.mmproj import read_mmproj, tower_weights
from stonechat_models.checkpoint.gguf.names import whole_name
from stonechat_models.checkpoint.gguf.ranking import read_gguf_reranker
from stonechat_models.checkpoint.gguf.reader import MAGIC, gguf_parts, read_gguf
from stonechat_models.checkpoint.gguf.weights import Values
from stonechat_models.checkpoint.hf_config import HFConfig, read_config
from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.hub.gguf_files import cached_or_header
from stonechat_models.checkpoint.hub.names import choose_gguf, parse_hub_name
from stonechat_models.checkpoint.known import default_model
from stonechat_models.checkpoint.known.aliases import resolve_alias
from stonechat_models.checkpoint.known.suggestions import did_you_mean
from stonechat_models.checkpoint.rerankers import RerankerFiles, read_reranker_files
from stonechat_models.checkpoint.sentence_transformers import (
    EmbedderFiles,
    read_embedder_files,
    transformer_folder,
)
from stonechat_models.checkpoint.tokenizers.conversion import with_tokenizer
from stonechat_models.checkpoint.vision_file import (
    fetch_vision_file,
    find_vision_file,
    refuse_vision_file,
    vision_header,
)
from stonechat_models.checkpoint.weight_files import weights_in
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading

DEFAULT_NAMES = frozenset({"", "default", default_model.NAME})
TEXT_LAYERS = ("model.layers.", "model.embed_tokens.")
"""How the names of a text's weights begin, in a model of text alone."""
WeightFormat = Literal["safetensors", "gguf", "pickle"]


@dataclass(frozen=True, slots=True)
class Located:
    """A model's name, and its folder or GGUF file. `path` is None for a model to be fetched."""

    name: str
    path: Path | None
    revision: str | None = None
    """The branch, tag or commit of a model to be fetched."""
    mmproj: Path | None = None
    """The file with the vision part of a GGUF file of the hub."""


def locate(config: EngineConfig, progress: Progress, *, only_headers: bool = False) -> Located:
    """Find what the name of a model means: its files on this machine. Fetch them if needed.

    `only_headers`: of the models on the hub, only those in its local cache have a path. Raises
    `ModelLoadError` when the model does not exist.
    """
    with reading(config.model):
        name = resolve_alias(config.model)
    if name in DEFAULT_NAMES and not Path(name or ".missing").is_dir():
        return Located(default_model.NAME, default_model.fetch_default_model(progress))
    with reading(name):
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_folder:
        return _locate_in_folder(hub.main_snapshot(path.resolve()), progress)
    if is_file:
        if path.suffix != ".gguf" and not _is_gguf(path):
            raise ModelLoadError(f"{path} is neither a folder nor a GGUF file; name one of these")
        return Located(path.stem, path.absolute())
    return _locate_on_hub(name, config, progress, only_headers)


def _locate_in_folder(folder: Path, progress: Progress) -> Located:
    """Find the model of a folder. One without other weights is served by a GGUF file."""
    files = [] if hub.has_weights(folder) else [path.name for path in folder.iterdir()]
    file = choose_gguf(files, None)
    if file is None:
        return Located(hub.cached_name(folder) or folder.name, folder)
    progress(f"{folder.name}: serving {file}")
    return Located((folder / file).stem, folder / file)


def _is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do. Those that Ollama keeps have no ending."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _locate_on_hub(
    name: str, config: EngineConfig, progress: Progress, only_headers: bool
) -> Located:
    hub_name = parse_hub_name(name)
    if hub_name is None or ("/" not in name and name.endswith(".gguf")):
        raise ModelLoadError(
            f"there is no file or folder {name}, and it is not a name of the Hugging Face hub, "
            f"which is owner/name, owner/name:Q4_K_M or owner/name/file.gguf{did_you_mean(name)}"
        )
    repository, file = hub_name.repository, hub_name.file
    revision = config.revision or hub_name.revision
    if hub_name.quantisation is not None:
        file = hub.find_gguf(repository, hub_name.quantisation, revision)
    elif file is None:
        located = _locate_repository(repository, revision, config, progress, only_headers)
        if isinstance(located, Located):
            return located
        file = located
    if file != hub_name.file:
        progress(f"{repository}: serving {file}")
    if only_headers:
        path = cached_or_header(repository, file, revision, progress)
    else:
        path = hub.fetch_gguf(repository, file, revision, progress)
    located = Located(path.stem, path.absolute())
    if config.mmproj is not None:
        return located
    if only_headers:
        _, mmproj = vision_header(repository, file, revision, progress)
    else:
        mmproj = fetch_vision_file(repository, file, path, revision, progress)
    return replace(located, mmproj=mmproj)


def _locate_repository(
    repository: str,
    revision: str | None,
    config: EngineConfig,
    progress: Progress,
    only_headers: bool,
) -> Located | str:
    """Return the folder of a repository, or one of its GGUF files if it has no other weights."""
    if only_headers:
        folder = hub.cached_snapshot(repository, revision)
    else:
        folder = hub.fetch_snapshot(repository, revision, config.allow_pickle, progress)
    if folder is not None and hub.has_weights(folder):
        return Located(repository, folder, revision)
    files: list[str] = []
    with suppress(ModelLoadError):  # what fetches the folder or its headers says it
        files = hub.list_files(repository, revision)
    if any(name.endswith(".safetensors") for name in files):
        return Located(repository, folder, revision)
    return choose_gguf(files, None) or Located(repository, folder, revision)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk.

    `folder` has config.json and tokenizer.json. It also has tokenizer_config.json,
    generation_config.json and chat templates if the model has them. For a GGUF, `folder` lies in
    the cache, and only the GGUF and `mmproj` hold weights. `weights` are the files with the
    weights, in a stable order.
    """

    name: str
    folder: Path
    config: HFConfig
    gguf: Path | None
    weights: tuple[Path, ...]
    adapter: Adapter | None = None
    """What is merged into the weights at load."""
    notes: tuple[str, ...] = ()
    """What the user should know of the files."""
    embedder: EmbedderFiles | None = None
    """How the model makes embeddings, if its files say so."""
    reranker: RerankerFiles | None = None
    """How the model scores pairs of texts, if it does."""
    adapters: tuple[Adapter, ...] = ()
    """What is computed beside the weights, for the requests that name it."""
    mmproj: Path | None = None
    """The GGUF file of the vision part, which is one of `weights`."""
    image_refusal: str = ""
    """Why a GGUF model takes no images, if its files or the settings say it."""
    embeds_last: bool = False
    """Whether it is a decoder that makes embeddings of last tokens, and no text."""

    @property
    def weight_format(self) -> WeightFormat:
        if self.gguf is not None:
            return "gguf"
        is_safe = all(path.suffix == ".safetensors" for path in self.weights)
        return "safetensors" if is_safe else "pickle"


def resolve_model(config: EngineConfig, progress: Progress) -> ModelFiles:
    """Find the model that `config` names. Fetch and convert it if needed.

    `progress` receives lines to show to the user, only when something slow is done.
    Raises `ModelLoadError` when the model does not exist or cannot be read, and its subclass
    `UnsupportedModelError` when it would be read wrongly.
    """
    located = locate(config, progress)
    assert located.path is not None
    adapter, adapters = locate_adapter(config, progress), locate_adapters(config, progress)
    if located.path.is_file():
        files = _from_gguf(located, located.path, config, progress)
        adapters = tuple(_of_whole(adapter, files.config) for adapter in adapters)
        if adapter is not None:
            files = replace(files, adapter=_of_whole(adapter, files.config))
    else:
        refuse_vision_file(located.name, config)
        files = _from_folder(located.name, located.path, adapter, config.allow_pickle, progress)
    if files.name in [adapter.name for adapter in adapters]:
        raise ModelLoadError(f"{files.name} is the model's own name: give its adapter another")
    return replace(files, adapters=adapters) if adapters else files


def fetch_model(config: EngineConfig, progress: Progress) -> Path:
    """Download and convert the model of `config`. Return its folder.

    A download that stopped before continues. Raises `ModelLoadError` when the model does not
    exist, or is neither on this machine nor reachable.
    """
    return resolve_model(config, progress).folder


def weights_hash(files: ModelFiles) -> str:
    """Return a hash that distinguishes models by their weights, an adapter's included.

    It samples them, so it is quick.
    """
    adapter = files.adapter.files if files.adapter is not None else ()
    return sampled_hash([*files.weights, *adapter])


def _from_gguf(
    located: Located, path: Path, config: EngineConfig, progress: Progress
) -> ModelFiles:
    folder, weights = converted_folder(path, progress), gguf_parts(path)
    gguf = read_gguf(path, skip_texts=True)
    embedder, notes = read_embedder_files(folder), tuple[str, ...]()
    if embedder is not None and not pooling(gguf):
        notes = (NO_POOLING,)
    mmproj, refusal = find_vision_file(gguf, located.mmproj, config, progress)
    if mmproj is not None:
        try:
            folder = composite_folder(path, folder, mmproj, progress)
            weights = [*weights, mmproj]
        except ModelLoadError as error:
            if config.mmproj is not None:
                raise
            mmproj, refusal = None, str(error)
    model_config = read_config(folder / "config.json")
    return ModelFiles(
        name=located.name,
        folder=folder,
        config=model_config,
        gguf=path,
        weights=tuple(weights),
        notes=notes,
        embedder=embedder,
        embeds_last=embeds_last(gguf),
        reranker=read_gguf_reranker(gguf) or read_reranker_files(folder, model_config),
        mmproj=mmproj,
        image_refusal=refusal,
    )


def _of_whole(adapter: Adapter, config: HFConfig) -> Adapter:
    """Return an adapter of a text with the names that its layers have in the model of `config`."""
    layers = {
        whole_name(config, name) if name.startswith(TEXT_LAYERS) else name: layer
        for name, layer in adapter.layers.items()
    }
    return replace(adapter, layers=layers)


def tower_parameters(files: ModelFiles) -> Iterator[tuple[str, Values]]:
    """Yield the parameters of the vision part that lies in a file of its own, if there is one."""
    if files.mmproj is not None:
        for weight in tower_weights(read_mmproj(files.mmproj)):
            yield weight.name, weight.values


def _from_folder(
    name: str, folder: Path, adapter: Adapter | None, allow_pickle: bool, progress: Progress
) -> ModelFiles:
    refuse_adapter_alone(folder)
    embedder, whole = read_embedder_files(folder), folder
    folder = transformer_folder(folder)
    config = read_config(folder / "config.json")
    reranker = read_reranker_files(whole, config) if embedder is None else None
    weights = weights_in(folder, allow_pickle)
    notes = _notes(folder, adapter)
    if not (folder / "tokenizer.json").is_file():
        folder = with_tokenizer(folder, progress)
    return ModelFiles(name, folder, config, None, weights, adapter, notes, embedder, reranker)


def _notes(folder: Path, adapter: Adapter | None) -> tuple[str, ...]:
    """Return what the user should know of the adapter that is merged, or is not."""
    if adapter is None:
        note = f"the LoRA adapter beside the model is not used (--adapter {folder} merges it)"
        return (note,) if is_adapter(folder) else ()
    own, models = (path / "chat_template.jinja" for path in (adapter.folder, folder))
    if not own.is_file() or (models.is_file() and own.read_bytes() == models.read_bytes()):
        return ()
    return (f"the adapter's chat template is not used (--chat-template {own} chooses it)",)
