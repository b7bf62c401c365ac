"""Loads the Hugging Face processor of a model without its parts for other modalities.

Transformers is only imported where one is loaded. Nothing is fetched, and no code of a model's
folder runs.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.version import Version

from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.number_words import in_words
from stonechat_models.media.voxtral import VoxtralProcessor
from stonechat_models.model_file import read_json
from stonechat_models.types import Modality

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
VIDEO_CONFIG = "video_preprocessor_config.json"
FOR_PILLOW = {
    "Lfm2VlImageProcessor": "stonechat_models.media.lfm2_vl:Lfm2VlImageProcessor",
    "Llama4ImageProcessor": "stonechat_models.media.llama4:Llama4ImageProcessor",
    "Idefics3ImageProcessor": (
        "transformers.models.idefics3.image_processing_pil_idefics3:Idefics3ImageProcessorPil"
    ),
    "SmolVLMImageProcessor": (
        "transformers.models.smolvlm.image_processing_pil_smolvlm:SmolVLMImageProcessorPil"
    ),
}
"""Image processors for Pillow by the names of those for torchvision. The first two are our own:
transformers has none. It has the others, and hides them before 5.18 if torchvision is missing."""
SINCE = {
    "DeepseekOcr2Processor": "5.20",
    "Qwen2_5OmniProcessor": "5.24",
    "Qwen3OmniMoeProcessor": "5.24",
}
"""Processors that older versions of transformers have, and the first version where they say what
stands for a medium in the prompt, and need none of their parts for other modalities."""
FALSELY_BOUND = {"PixtralProcessor": "pixtral", "Gemma4Processor": "gemma4"}
"""Processors that ask for torchvision only because they import names of the module with that image
processor, and the packages where the module for Pillow has the same names. Gemma 4's is one of them
before transformers 5.21."""
NEEDS_TORCHVISION = "its image processor needs torchvision, which is not installed"


def load_processor(folder: Path, modality: Modality, token_id: int) -> Any:
    """Return the processor of a folder, with its parts for one modality.

    Raises `UnsupportedModelError` with the reason if there is none, and what transformers raises.
    """
    from transformers import AutoTokenizer

    found = _processor_class(folder)
    if refusal := version_refusal(found.__name__):
        raise UnsupportedModelError(refusal)
    parts = _image_parts(folder) if modality == "image" else _audio_parts(folder)
    if found.__name__ == "VoxtralProcessor":
        return VoxtralProcessor(parts["feature_extractor"], token_id)
    processor_class = _without_other_parts(found)
    if found.__name__.startswith("MiniCPMV"):  # reads of it how a video is cut, for videos alone
        parts["video_processor"] = parts["image_processor"]
    parts["tokenizer"] = AutoTokenizer.from_pretrained(folder, **LOCAL)
    settings, _ = processor_class.get_processor_dict(folder, local_files_only=True)
    arguments = [parts.get(name) for name in processor_class.get_attributes()]
    return processor_class.from_args_and_dict(arguments, settings)


def counts_images(folder: Path) -> bool:
    """Whether a model's processor prepares an image otherwise if a prompt has several."""
    config = read_json(folder / "config.json") or {}
    return config.get("model_type") == "llava_onevision"


def version_refusal(processor: str) -> str:
    """Return that the installed transformers is too old for a class of processors; or nothing."""
    import transformers

    installed, needed = transformers.__version__, SINCE.get(processor, "0")
    if Version(installed) >= Version(needed):
        return ""
    return f"its processor needs transformers {needed}, and {installed} is installed"


def _image_parts(folder: Path) -> dict[str, Any]:
    # Not from `transformers` itself, which before 5.18 hides it where there is no torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    named = _image_processor_type(folder).removesuffix("Fast")
    if named in FOR_PILLOW:
        module, _, name = FOR_PILLOW[named].partition(":")
        found = getattr(import_module(module), name)
        return {"image_processor": found.from_pretrained(folder, **LOCAL)}
    try:
        part = AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)
    except (ImportError, ValueError) as error:
        if "torchvision" in str(error) and find_spec("torchvision") is None:
            raise UnsupportedModelError(NEEDS_TORCHVISION) from None
        raise
    return {"image_processor": part}


def _image_processor_type(folder: Path) -> str:
    """Return the class that the folder's files name; an empty text if they name none."""
    configs = [read_json(folder / name) or {} for name in CONFIGS]
    parts = [part for config in configs for part in (config.get("image_processor"), config)]
    names = (part.get("image_processor_type") for part in parts if isinstance(part, dict))
    return next((str(name) for name in names if name), "")


def _audio_parts(folder: Path) -> dict[str, Any]:
    from transformers import AutoFeatureExtractor

    part = AutoFeatureExtractor.from_pretrained(folder, **LOCAL)
    return {"feature_extractor": part, "audio_processor": part}


def _processor_class(folder: Path) -> Any:
    """Return the class that the folder's files name; if they name none, that of the model type."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    configs = [read_json(folder / name) or {} for name in CONFIGS]
    names = [config["processor_class"] for config in configs if config.get("processor_class")]
    model_type = (read_json(folder / "config.json") or {}).get("model_type", "")
    names.append(PROCESSOR_MAPPING_NAMES.get(model_type))
    classes = (_class_of_name(name) for name in names if name)
    found = next((each for each in classes if each is not None), None)
    if found is None:
        raise UnsupportedModelError("its folder names no processor that transformers has")
    if getattr(found, "is_dummy", False):
        raise UnsupportedModelError(f"its processor needs {', '.join(found._backends)}")
    return found


def _class_of_name(name: str) -> Any:
    """Return transformers' class of processors, a placeholder without packages that it needs, or
    None."""
    from transformers.models.auto.processing_auto import processor_class_from_name

    if name not in FALSELY_BOUND or find_spec("torchvision") is not None:
        return processor_class_from_name(name)
    family = FALSELY_BOUND[name]
    package = f"transformers.models.{family}"
    pil = import_module(f"{package}.image_processing_pil_{family}")
    sys.modules.setdefault(f"{package}.image_processing_{family}", pil)
    return getattr(import_module(f"{package}.processing_{family}"), name)


def _without_other_parts(processor_class: Any) -> Any:
    """Return a class of processors that may lack their parts for other modalities."""
    module: Any = import_module(processor_class.__module__)
    if getattr(module, "num2words", True) is None:  # for the number of a video's frames
        module.num2words = in_words

    def check(self: Any, name: str, argument: object) -> object:
        if argument is None or name == "video_processor":  # MiniCPM-V's stands for none
            return None
        return processor_class.check_argument_for_proper_class(self, name, argument)

    return type("OnePart", (processor_class,), {"check_argument_for_proper_class": check})
