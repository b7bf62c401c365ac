"""Reads how a classifier with one label scores a pair of texts, as sentence-transformers does.

The settings are in config.json, or in the files that the library writes beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from stonechat_models.checkpoint.hf_config import HFConfig, JsonObject, shown
from stonechat_models.checkpoint.sentence_transformers import (
    CROSS_ENCODER,
    MODULES_FILE,
    SETTINGS_FILE,
    TASK,
    max_length,
    module_kinds,
    transformer_settings,
)
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_file import read_json

CLASSIFIER = "ForSequenceClassification"
DEFAULT_ACTIVATION = "torch.nn.Sigmoid"
DEFAULT_NUM_LABELS = 2
"""What transformers assumes if config.json names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerFiles:
    """How a folder's classifier scores pairs."""

    activation: str = DEFAULT_ACTIVATION
    """The function of PyTorch that makes the score of the model's number."""
    max_length: int = 0
    """Of a pair, in tokens; 0: the files do not say."""
    lower_case: bool = False
    prompt: str = ""
    """What stands before each question."""


def num_labels(config: HFConfig) -> int:
    """Return how many labels a classifier has."""
    labels = config.keys.read("id2label", dict[str, object], {})
    return config.keys.read("num_labels", int, len(labels) or DEFAULT_NUM_LABELS)


def is_reranker(config: HFConfig) -> bool:
    """Whether a model is a classifier with one label: its only number is a score."""
    return config.architecture.endswith(CLASSIFIER) and num_labels(config) == 1


def read_reranker_files(folder: Path, config: HFConfig) -> RerankerFiles | None:
    """Read how the classifier of `folder` scores pairs; None if the model is no reranker.

    Raises `ModelLoadError` for a file that is not right, and `UnsupportedModelError` with its name
    for a module that is not served.
    """
    kinds = module_kinds(folder)
    content = read_json(folder / SETTINGS_FILE) if kinds else None
    settings = JsonObject(str(folder / SETTINGS_FILE), content or {})
    is_classifier = config.architecture.endswith(CLASSIFIER)
    is_cross_encoder = settings.read("model_type", str, "") == CROSS_ENCODER
    if kinds not in ([], ["Transformer"]) or (is_cross_encoder and not is_classifier):
        raise UnsupportedModelError(
            f"{folder / MODULES_FILE} has the modules {', '.join(map(shown, kinds))} for "
            f"{config.architecture}; of cross-encoders, only classifiers without further modules "
            "are served"
        )
    if not is_reranker(config):
        return None
    transformer = transformer_settings(folder)
    task = transformer.read(TASK, str, "sequence-classification")
    if task != "sequence-classification":
        raise transformer.error(TASK, f"is {shown(task)}, which does not fit the model")
    prompts = settings.read("prompts", dict[str, str | None], {})
    return RerankerFiles(
        activation=_activation(settings, config),
        max_length=max_length(folder, transformer),
        lower_case=transformer.read("do_lower_case", bool, False),
        prompt=prompts.get(settings.read("default_prompt_name", str, "")) or "",
    )


def _activation(settings: JsonObject, config: HFConfig) -> str:
    """Return the first activation that the files name."""
    older = config.keys.section("sentence_transformers")
    return (
        settings.read("activation_fn", str, "")
        or older.read("activation_fn", str, "")
        or config.keys.read("sbert_ce_default_activation_function", str, "")
        or DEFAULT_ACTIVATION
    )
