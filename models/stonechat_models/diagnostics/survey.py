"""What is known of a model before it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from stonechat_models.model_info import ModelUse


@dataclass(frozen=True, slots=True)
class ServingForm:
    """A precision and a backend that can serve a model. Sizes are in bytes."""

    name: str
    backend: str
    weight_bytes: int
    decode_bytes: int
    """Bytes of weights that a decode step of one sequence reads."""
    kv_bytes_per_token: int
    """0: it is not known before the model is loaded."""
    kv_tokens: int
    """How many tokens the KV cache holds with these settings. 0: none, or it is not known."""
    is_default: bool
    """Whether the settings, as they are, choose this form."""


@dataclass(frozen=True, slots=True)
class ModelSurvey:
    """A model before it is loaded. `refusal` says why it is not served. None: it is served."""

    name: str
    architecture: str
    num_parameters: int
    num_active_parameters: int
    """Parameters that one token uses. In a mixture of experts they are fewer than all."""
    stored_bytes: int
    stored_types: Mapping[str, int]
    """Number of parameters per stored type."""
    max_model_len: int
    device: str
    total_memory: int
    free_memory: int
    refusal: str | None
    native_refusal: str | None
    """Why the compiled CPU path does not serve the model. None: it does."""
    forms: tuple[ServingForm, ...]
    use: ModelUse = "generation"
    """What the model does."""
    attention: str = ""
    """The attention backend that is tried first. Empty: none, or the native backend's own."""
    draft: ServingForm | None = None
    """What the draft model takes. It is not part of `free_memory`, and its share of the KV cache is
    part of that of each form."""
    may_take_images: bool = False
    """Whether it is a model for images and text. It takes images if its checks at load pass."""
    image_refusal: str = ""
    """Why such a model takes no images. Empty: nothing is known against it."""
    may_take_audio: bool = False
    """Whether it is a model for audio and text. It takes audio if its checks at load pass."""
    audio_refusal: str = ""
    """Why such a model takes no audio. Empty: nothing is known against it."""
    graphs_refusal: str | None = None
    """Why steps on a CUDA device run without CUDA graphs. None: they have them."""
    num_ranks: int = 1
    """How many devices share the model. `free_memory` and the sizes of forms are those of one."""
    file_format: str = ""
    """That of the files with the weights: safetensors, gguf or pickle."""
