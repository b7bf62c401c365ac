"""The towers of a model whose language model is compiled. They run through PyTorch.

Whether the model takes images or audio is decided from its files at load. The towers themselves are
loaded with the first image or clip, so that a server of text alone neither waits for them nor keeps
them.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stonechat_models.backends.native.plan.composites import (
    AUDIO_TOKENS,
    DRAFT_PREFIX,
    IMAGE_TOKENS,
)
from stonechat_models.backends.native.tensor_source import FLOAT_TYPES
from stonechat_models.checkpoint.gguf.mmproj import tower_dtype
from stonechat_models.checkpoint.headers import ModelHeaders, TensorHeader
from stonechat_models.checkpoint.hf_config import HFConfig, JsonObject
from stonechat_models.checkpoint.packed.folder import stored_tensors
from stonechat_models.checkpoint.packed.method import read_method
from stonechat_models.checkpoint.packed.tensors import OTHER_TOWER
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.hardware.device import cpu_has_bfloat16
from stonechat_models.media.hf_processor import (
    audio_packages_refusal,
    pillow_refusal,
)
from stonechat_models.model_info import AudioInfo, ImageInfo

if TYPE_CHECKING:
    from stonechat_models.media.tower import Tower

STACKS = re.compile(r"(.*\b(?:layers?|blocks)\.)(\d+)(\..*)")
"""Names of the weights of a layer of a tower: the stack, the layer's number, the weight."""
DEPTHS = ("depth", "num_hidden_layers", "encoder_layers")
WHOLE = " (--backend transformers loads the model whole)"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class TowerPart:
    """The towers of a model, which are loaded when one is first used."""

    def __init__(self, files: ModelFiles, language_model: tuple[str, ...], threads: int) -> None:
        """`language_model`: how the names of the language model's weights begin in the files."""
        self._files = files
        self._language_model = (*language_model, DRAFT_PREFIX)
        self._threads = threads
        self._tower: Tower | None = None
        self._failure = ""
        """Why the tower cannot be loaded. It is tried once."""

    def loaded(self) -> "Tower":
        """Load the towers with the first image or clip. Raises what their code raises."""
        if self._failure:
            raise ModelLoadError(self._failure)
        if self._tower is None:
            from stonechat_models.media.tower import load_tower

            try:
                self._tower = load_tower(self._files, self._language_model, self._threads)
            except Exception as error:
                self._failure = f"its tower cannot be loaded: {error}"
                raise
        return self._tower


def read_images(
    files: ModelFiles, language_model: tuple[str, ...], *, has_axes: bool
) -> ImageInfo | None:
    """Return how the prompts of a model hold images; None if it is a model of text alone.

    `has_axes`: whether tokens of images have rotary positions in three dimensions. Raises
    `UnsupportedModelError` with the reason if a model that could take images cannot do so here.
    """
    config = files.config
    if config.raw.get("vision_config") is None or config.model_type not in IMAGE_TOKENS:
        return None
    if refusal := pillow_refusal():
        raise UnsupportedModelError(refusal)
    if has_other_tower(config):
        raise UnsupportedModelError(OTHER_TOWER)
    if not any((files.folder / name).is_file() for name in PROCESSOR_FILES):
        raise UnsupportedModelError("its folder has no settings of an image processor")
    _check_files(files, language_model, "vision")
    whole = JsonObject(config.keys.source, config.raw)
    default = whole.read("image_token_index", int, IMAGE_TOKENS[config.model_type])
    return ImageInfo(
        token_id=whole.read("image_token_id", int, default),
        bidirectional=config.model_type == "gemma3",
        has_grid_positions=has_axes,
    )


def read_audio(files: ModelFiles, language_model: tuple[str, ...]) -> AudioInfo | None:
    """Return how the prompts of a model hold audio; None if it is not a model for audio.

    Raises `UnsupportedModelError` with the reason if a model that could take audio cannot do so
    here.
    """
    config = files.config
    if config.raw.get("audio_config") is None or config.model_type not in AUDIO_TOKENS:
        return None
    if refusal := audio_packages_refusal():
        raise UnsupportedModelError(refusal)
    if not any((files.folder / name).is_file() for name in PROCESSOR_FILES):
        raise UnsupportedModelError("its folder has no settings of an audio processor")
    if has_other_tower(config):
        raise UnsupportedModelError("the audio towers of MLX files are not read")
    _check_files(files, language_model, "audio")
    whole = JsonObject(config.keys.source, config.raw)
    default = whole.read("audio_token_index", int, AUDIO_TOKENS[config.model_type])
    return AudioInfo(token_id=whole.read("audio_token_id", int, default))


def has_other_tower(config: HFConfig) -> bool:
    """Whether the files have a vision tower in another form, as those of MLX do."""
    return read_method(config).name == "mlx"


def tower_bytes(headers: ModelHeaders, language_model: tuple[str, ...]) -> int:
    """Return the bytes of the towers that run beside the language model; 0 without one."""
    config = headers.config
    sees = config.raw.get("vision_config") is not None and config.model_type in IMAGE_TOKENS
    hears = config.raw.get("audio_config") is not None and config.model_type in AUDIO_TOKENS
    if not (sees or hears) or has_other_tower(config):
        return 0
    others = (*language_model, DRAFT_PREFIX)
    weights = [t for t in headers.tensors if not t.name.startswith(others)]
    dtype = (
        tower_dtype(t.type_name for t in weights)
        if headers.weight_format == "gguf"
        else config.dtype
    )
    size = 2 if dtype == "bfloat16" and cpu_has_bfloat16() else 4
    return sum(t.num_elements * size for t in weights)


def _check_files(files: ModelFiles, language_model: tuple[str, ...], kind: str) -> None:
    """Refuse a tower that an adapter changes, and what `_check_weights` refuses."""
    if files.mmproj is None:  # else it was checked when it was found
        others = (*language_model, DRAFT_PREFIX)
        weights = [t for t in stored_tensors(files) if not t.name.startswith(others)]
        _check_weights(weights, files.config, kind)
    changed = files.adapter.layers.keys() if files.adapter is not None else ()
    if any(not name.startswith(language_model) for name in changed):
        raise UnsupportedModelError(f"its adapter changes the {kind} tower{WHOLE}")


def _check_weights(weights: Sequence[TensorHeader], config: HFConfig, kind: str) -> None:
    """Refuse a tower that is quantised, or of which layers are missing. All of it is checked when
    it is loaded, by a library whose import would make each start slower."""
    if any(t.type_name not in FLOAT_TYPES for t in weights):
        raise UnsupportedModelError(f"the weights of its {kind} tower are quantised{WHOLE}")
    stacks: dict[str, dict[int, set[str]]] = {}
    for match in filter(None, (STACKS.fullmatch(t.name) for t in weights)):
        stack, layer, name = match.groups()
        stacks.setdefault(stack, {}).setdefault(int(layer), set()).add(name)
    tower = config.keys.section(f"{kind}_config")
    depth = next((n for key in DEPTHS if (n := tower.read(key, int, 0))), 0)
    is_whole = all(
        layers.keys() == set(range(len(layers))) and len({*map(frozenset, layers.values())}) == 1
        for layers in stacks.values()
    )
    if not is_whole or depth not in (0, *map(len, stacks.values())):
        raise UnsupportedModelError(f"weights of its {kind} tower are missing")
