"""Reads how a model scores a pair of texts, as sentence-transformers does.

It is a classifier with one label, or a model that generates, of which the logits of a token or two
count.

The settings are in config.json, or in the files that the library writes beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.checkpoint.hf_config import HFConfig, JsonObject, shown
from stonechat_models.checkpoint.sentence_transformers import (
    CROSS_ENCODER,
    MODULES_FILE,
    SETTINGS_FILE,
    TASK,
    max_length,
    module_config,
    module_kinds,
    transformer_settings,
)
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_file import read_json
from stonechat_models.model_info import PairTemplate

CLASSIFIER = "ForSequenceClassification"
DEFAULT_ACTIVATION = "torch.nn.Sigmoid"
TASKS = {False: "sequence-classification", True: "text-generation"}
"""The task in the files of sentence-transformers, by whether the model generates."""
LOGITS, LOGITS_NAME = "LogitScore", "causal_logits"
"""The module that makes a score of logits, and what it reads."""
CUTTING = ("restore_suffix", "truncation", "max_length", "padding", "return_tensors")
UNSERVED_OPTIONS = {"chat_template", "continue_final_message", "tools", "documents"}
"""Options of chat templates that would change more than a variable."""
DEFAULT_NUM_LABELS = 2
"""What transformers assumes if config.json names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerFiles:
    """How a folder's model scores pairs."""

    activation: str = DEFAULT_ACTIVATION
    """The function of PyTorch that makes the score of the model's number."""
    max_length: int = 0
    """Of a pair, in tokens; 0: the files do not say."""
    lower_case: bool = False
    prompt: str = ""
    """What stands before each question; the system message, if there is a chat template."""
    template: PairTemplate = "pair"
    token_ids: tuple[int, ...] = ()
    """Of a model that generates: the token whose logit is the number, and perhaps one whose logit
    is taken off it."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """What its chat template is given beside the question and the document."""
    head: npt.NDArray[np.float32] | None = None
    """float32[H], whose product with the last hidden state is the number; None: logits make it."""


def num_labels(config: HFConfig) -> int:
    """Return how many labels a classifier has."""
    labels = config.keys.read("id2label", dict[str, object], {})
    return config.keys.read("num_labels", int, len(labels) or DEFAULT_NUM_LABELS)


def is_reranker(config: HFConfig) -> bool:
    """Whether a model is a classifier with one label: its only number is a score."""
    return config.architecture.endswith(CLASSIFIER) and num_labels(config) == 1


def read_reranker_files(folder: Path, config: HFConfig) -> RerankerFiles | None:
    """Read how the model of `folder` scores pairs; None if it is no reranker.

    Raises `ModelLoadError` for a file that is not right, and `UnsupportedModelError` with its name
    for a module that is not served.
    """
    kinds = module_kinds(folder)
    content = read_json(folder / SETTINGS_FILE) if kinds else None
    settings = JsonObject(str(folder / SETTINGS_FILE), content or {})
    kind = settings.read("model_type", str, "")
    generates = config.architecture.endswith("ForCausalLM") and kinds == ["Transformer", LOGITS]
    is_classifier = config.architecture.endswith(CLASSIFIER) and kinds in ([], ["Transformer"])
    if kind == CROSS_ENCODER and not (generates or is_classifier):
        raise UnsupportedModelError(
            f"{folder / MODULES_FILE} has the modules {', '.join(map(shown, kinds))} for "
            f"{config.architecture}; of cross-encoders, only a Transformer that classifies, or one "
            f"that generates with a {LOGITS}, are served"
        )
    if not (generates or is_reranker(config)):
        return None
    transformer = transformer_settings(folder)
    task = transformer.read(TASK, str, TASKS[generates])
    if task != TASKS[generates]:
        raise transformer.error(TASK, f"is {shown(task)}, which does not fit the model")
    prompts = settings.read("prompts", dict[str, str | None], {})
    return RerankerFiles(
        activation=_activation(settings, config),
        max_length=max_length(folder, transformer),
        lower_case=transformer.read("do_lower_case", bool, False),
        prompt=prompts.get(settings.read("default_prompt_name", str, "")) or "",
        template="chat" if generates else "pair",
        token_ids=_token_ids(folder) if generates else (),
        template_options=_template_options(transformer),
    )


def _token_ids(folder: Path) -> tuple[int, ...]:
    """Return the tokens whose logits make the score of a model that generates."""
    place, config = module_config(folder, 1)
    name = config.read("module_input_name", str, LOGITS_NAME)
    if name != LOGITS_NAME:
        raise UnsupportedModelError(f"{place}: module_input_name {shown(name)} is not served")
    ids = (config.read("true_token_id", int), config.read("false_token_id", int, -1))
    return ids if ids[1] >= 0 else ids[:1]


def _template_options(transformer: JsonObject) -> Mapping[str, Any]:
    """Return what the library gives the chat template, without what is for cutting texts."""
    section = transformer.section("processing_kwargs").section("chat_template")
    for name in UNSERVED_OPTIONS & section.values.keys():
        raise UnsupportedModelError(f"{section.source}: {name} is not served")
    return {name: value for name, value in section.values.items() if name not in CUTTING}


def _activation(settings: JsonObject, config: HFConfig) -> str:
    """Return the first activation that the files name."""
    older = config.keys.section("sentence_transformers")
    return (
        settings.read("activation_fn", str, "")
        or older.read("activation_fn", str, "")
        or config.keys.read("sbert_ce_default_activation_function", str, "")
        or DEFAULT_ACTIVATION
    )
