"""The Hugging Face processor of a model, for one image or audio clip at a time.

Transformers is only imported where a processor is loaded. Nothing is fetched, and no code of a
model's folder runs.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_file import read_json, reason_of
from stonechat_models.types import MediaInput, MediaTensor, Modality

if TYPE_CHECKING:
    import numpy as np

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
TEST_SIZE = (96, 64)
"""Pixels of the image that a processor must take before its model is served with images."""
LARGE_SIZE = (2048, 2048)
"""Pixels of the image by which the memory of the vision tower is measured."""
CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
NEEDS_TORCHVISION = "its image processor needs torchvision, which is not installed"
NEEDS_LONE_IMAGES = "its processor prepares an image otherwise if a prompt has several"
TEXT_OUTPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "labels")


def pillow_refusal() -> str:
    """Return that Pillow is missing; an empty text if it is there."""
    if find_spec("PIL") is None:
        return "images need Pillow: pip install 'stonechat[vision]'"
    return ""


def checked_processor(folder: Path, token_id: int) -> "HFProcessor | str":
    """Return a model's processor, which has prepared a small image; or why it cannot."""
    if refusal := pillow_refusal():
        return refusal
    from PIL import Image

    try:
        processor = HFProcessor(folder, "image", token_id)
        processor.prepare(Image.new("RGB", TEST_SIZE))
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:
        return f"its image processor fails: {reason_of(error)}"
    return processor


def large_image(processor: "HFProcessor") -> MediaInput:
    """Return a white image of `LARGE_SIZE`, as it is prepared for a model."""
    from PIL import Image

    _, num_tokens, arrays = processor.prepare(Image.new("RGB", LARGE_SIZE, "white"))
    return MediaInput(b"", ((0, num_tokens),), as_tensors(arrays))


def as_tensors(arrays: "Mapping[str, np.ndarray[Any, Any]]") -> dict[str, MediaTensor]:
    """Return copies of arrays, by the same names, for `MediaInput`."""
    return {
        name: MediaTensor(array.dtype.name, array.shape, array.tobytes())
        for name, array in arrays.items()
    }


class HFProcessor:
    """A model's processor for one modality. Its parts for others are not loaded."""

    placeholder: str
    """The text that the chat template writes for an image or a clip."""

    def __init__(self, folder: Path, modality: Modality, token_id: int) -> None:
        """Load the processor of a folder. `token_id`: the token whose place embeddings take.

        Raises `UnsupportedModelError` with the reason if there is none that works here.
        """
        self._token_id = token_id
        self._modality = modality
        self._processor = _load(folder, modality)
        self.placeholder = getattr(self._processor, f"{modality}_token", None) or ""
        if not self.placeholder:
            raise UnsupportedModelError(f"its processor has no placeholder for {modality}")

    @property
    def sampling_rate(self) -> int:
        """Samples a second of the clips that `prepare` takes."""
        return int(self._processor._audio_processor.sampling_rate)

    def prepare(self, medium: Any) -> tuple[str, int, dict[str, "np.ndarray[Any, Any]"]]:
        """Return the text of a medium, how many placeholder tokens it has, and the tensors.

        `medium`: an image of Pillow, or the samples of a clip at `sampling_rate`, float32[n].

        Raises what the processor raises, and `UnsupportedModelError` if it gives no text.
        """
        argument, kind = ("images", "np") if self._modality == "image" else ("audio", "pt")
        outputs = self._processor(
            **{argument: [medium]},
            text=[self.placeholder],
            return_text_replacement_offsets=True,
            return_tensors=kind,
        )
        offsets = outputs.pop("text_replacement_offsets", None)
        if not offsets or len(offsets[0]) != 1:
            raise UnsupportedModelError(f"its processor puts no tokens into prompts for {argument}")
        if "batch_num_images" in outputs:  # LLaVA-OneVision: tiles only where it is alone
            raise UnsupportedModelError(NEEDS_LONE_IMAGES)
        num_tokens = outputs["input_ids"][0].tolist().count(self._token_id)
        if not num_tokens:
            raise UnsupportedModelError("the placeholders of its processor are not its model's")
        tensors = {name: _array(v) for name, v in outputs.items() if name not in TEXT_OUTPUTS}
        return offsets[0][0]["replacement"], num_tokens, tensors


def _array(value: Any) -> "np.ndarray[Any, Any]":
    import numpy as np

    array = np.ascontiguousarray(value)
    if array.dtype == object:
        raise UnsupportedModelError("its processor gives tensors of several sizes for one file")
    return array


def _load(folder: Path, modality: Modality) -> Any:
    from transformers import AutoTokenizer

    processor_class = _without_other_parts(_processor_class(folder))
    parts = _image_parts(folder) if modality == "image" else _audio_parts(folder)
    parts["tokenizer"] = AutoTokenizer.from_pretrained(folder, **LOCAL)
    settings, _ = processor_class.get_processor_dict(folder, local_files_only=True)
    arguments = [parts.get(name) for name in processor_class.get_attributes()]
    return processor_class.from_args_and_dict(arguments, settings)


def _image_parts(folder: Path) -> dict[str, Any]:
    from transformers import AutoImageProcessor

    try:
        part = AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    except (ImportError, ValueError) as error:
        if "torchvision" in str(error) and find_spec("torchvision") is None:
            raise UnsupportedModelError(NEEDS_TORCHVISION) from None
        raise
    return {"image_processor": part}


def _audio_parts(folder: Path) -> dict[str, Any]:
    from transformers import AutoFeatureExtractor

    part = AutoFeatureExtractor.from_pretrained(folder, **LOCAL)
    return {"feature_extractor": part, "audio_processor": part}


def _processor_class(folder: Path) -> Any:
    """Return the class that the folder's files name; if they name none, that of the model type."""
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING_NAMES,
        processor_class_from_name,
    )

    configs = [read_json(folder / name) or {} for name in CONFIGS]
    names = [config["processor_class"] for config in configs if config.get("processor_class")]
    model_type = (read_json(folder / "config.json") or {}).get("model_type", "")
    names.append(PROCESSOR_MAPPING_NAMES.get(model_type))
    classes = [(name, processor_class_from_name(name)) for name in names if name]
    name, found = next((pair for pair in classes if pair[1] is not None), ("", None))
    if found is None:
        raise UnsupportedModelError("its folder names no processor that transformers has")
    if getattr(found, "is_dummy", False):
        if name != "PixtralProcessor":
            raise UnsupportedModelError(f"its processor needs {', '.join(found._backends)}")
        return _pixtral_processor()
    return found


def _pixtral_processor() -> Any:
    """Return the class, which asks for torchvision only because its module imports a function of
    the module with that image processor. The module without torchvision has the same function."""
    package = "transformers.models.pixtral"
    pil = import_module(f"{package}.image_processing_pil_pixtral")
    sys.modules.setdefault(f"{package}.image_processing_pixtral", pil)
    return import_module(f"{package}.processing_pixtral").PixtralProcessor


def _without_other_parts(processor_class: Any) -> Any:
    """Return a class of processors that may lack their parts for other modalities."""
    module: Any = import_module(processor_class.__module__)
    if getattr(module, "num2words", True) is None:  # for the times of a video's frames
        module.num2words = str

    def check(self: Any, name: str, argument: object) -> object:
        if argument is None:
            return None
        return processor_class.check_argument_for_proper_class(self, name, argument)

    return type("OnePart", (processor_class,), {"check_argument_for_proper_class": check})
