"""Runs a model's own tower on one image or audio clip."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stonechat_models.media.features import MediaFeatures
from stonechat_models.media.positions import as_array
from stonechat_models.types import MediaInput, MediaTensor


class _DecoderReachedError(Exception):
    """Ends a forward pass where the decoder would begin."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        self.embeddings = embeddings


def encode_media(
    module: Any, medium: MediaInput, device: torch.device, dtype: torch.dtype
) -> MediaFeatures:
    """Return what the model's own code puts in the place of a medium's placeholders, as tensors of
    `dtype`. Tensors of the medium that the code does not take are left out.

    Raises what the model's code raises if the tensors do not fit.
    """
    if medium.modality == "audio":
        return MediaFeatures(_audio_embeddings(module, medium, device, dtype).to(dtype))
    owners = [m for m in (module, module.base_model) if hasattr(m, "get_image_features")]
    owner, names = owners[0], set[str]()
    for each in owners:  # the outer one may hand on names that only the inner one knows
        names |= set(inspect.signature(each.get_image_features).parameters)
    output = owner.get_image_features(**tensors_of(medium, names, device, dtype))
    layers: Sequence[Any] = getattr(output, "deepstack_features", None) or ()
    if projects_later(module):
        output.pooler_output = module.multi_modal_projector(output.last_hidden_state)
    return MediaFeatures(
        _rows(output.pooler_output).to(dtype), tuple(_rows(layer).to(dtype) for layer in layers)
    )


def projects_later(module: Any) -> bool:
    """Whether the model's forward pass, not its tower, makes states as wide as embeddings."""
    return bool(module.config.model_type == "llama4")


def tensors_of(
    medium: MediaInput, names: set[str], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the tensors of a medium with these names on a device, floats as `dtype`."""
    return {
        name: _tensor(value, device, dtype)
        for name, value in medium.tensors.items()
        if name in names
    }


def decoder_of(module: nn.Module) -> nn.Module:
    """Return the part that computes hidden states of the embeddings of tokens."""
    decoder: nn.Module = module.get_decoder()  # type: ignore[operator]
    return decoder


def _audio_embeddings(
    module: Any, medium: MediaInput, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Run the model on a prompt of the clip's placeholders alone, up to its decoder.

    Families differ in what they do between their tower and the decoder, and this does all of it.
    """
    token_id, names = (
        module.config.audio_token_id,
        set(inspect.signature(module.forward).parameters),
    )

    def reach(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _DecoderReachedError(kwargs["inputs_embeds"])

    handle = decoder_of(module).register_forward_pre_hook(reach, with_kwargs=True)
    try:
        module(
            input_ids=torch.full((1, medium.num_tokens), token_id, device=device),
            use_cache=False,
            **tensors_of(medium, names, device, dtype),
        )
    except _DecoderReachedError as end:
        return end.embeddings[0]
    finally:
        handle.remove()
    raise AssertionError("the model does not call its decoder")


def _tensor(value: MediaTensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.tensor(as_array(value), device=device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _rows(features: Any) -> torch.Tensor:
    """Return the embeddings of all parts of an image, [n, H]."""
    if not isinstance(features, torch.Tensor):
        features = torch.cat(list(features))
    rows: torch.Tensor = features.reshape(-1, features.shape[-1])
    return rows
