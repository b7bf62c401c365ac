"""Which layers of a model let the tokens of an image attend to each other in both directions.

Transformers has this only in the masks that it builds, and none is built here. So the masks of a
short prompt with images are built once, from the configuration, and compared.
"""

import copy
import inspect
from typing import Any

import torch

from stonechat_models.errors import UnsupportedModelError

RUNS = ((2, 7), (9, 12))
"""The positions of the prompt's images."""
NUM_TOKENS = 14
WINDOW = 3
"""Shorter than the first image, to show how a sliding window and an image combine."""
TYPE_ARGUMENTS = ("token_type_ids", "mm_token_type_ids")


def bidirectional_layers(model_class: type, config: Any) -> frozenset[int]:
    """Return the layers in which the tokens of an image see those after them, in the same image.

    `config` is the configuration that transformers makes of the model's. Images without a token
    between them count as one. Raises `UnsupportedModelError` if any other token sees a later one.
    """
    short = copy.deepcopy(config)
    text: Any = short.get_text_config()
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = WINDOW
    is_image = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    for start, end in RUNS:
        is_image[start:end] = True
    masks = image_masks(model_class, short, is_image)
    types = getattr(text, "layer_types", None) or [""] * text.num_hidden_layers
    if isinstance(masks, dict):
        both_ways = {kind: _looks_both_ways(masks[kind], kind, text) for kind in set(types)}
    else:
        both_ways = dict.fromkeys(types, _looks_both_ways(masks, "", text))
    return frozenset(i for i, kind in enumerate(types) if both_ways[kind])


def image_masks(
    model_class: type, config: Any, is_image: torch.Tensor, dtype: torch.dtype | None = None
) -> Any:
    """Return the masks of a prompt as transformers generates with them.

    `is_image` bool[T]: the tokens that are placeholders of images. Returns bool[1, 1, T, T], None
    for a causal mask, or a dict of these by the type of layer. With a `dtype`, what is not seen is
    a low number of that type instead of False, and what is seen is 0.

    It may be given to a model as `attention_mask`. The model's own forward pass makes the same
    masks, except for Gemma 4 Unified: there it makes others, which no other code of Gemma 4 does.
    """
    build = getattr(model_class, "create_masks_for_generate", None)
    names = set() if build is None else {*inspect.signature(build).parameters}
    arguments = names.intersection(TYPE_ARGUMENTS)
    if build is None or not arguments:
        return None
    copied = copy.deepcopy(config)
    copied._attn_implementation = "sdpa" if dtype is None else "eager"
    return build(
        config=copied,
        inputs_embeds=torch.empty(1, len(is_image), 0, dtype=dtype),
        attention_mask=None,
        **{"cache" if "cache" in names else "past_key_values": None},
        position_ids=None,
        is_first_iteration=True,
        **dict.fromkeys(arguments, is_image.long().unsqueeze(0)),
    )


def _looks_both_ways(mask: torch.Tensor | None, kind: str, config: Any) -> bool:
    """Whether a mask of the prompt, for layers of a kind, is not causal."""
    if mask is None:
        return False
    positions = torch.arange(NUM_TOKENS)
    ends = positions + 1
    for start, end in RUNS:
        ends[start:end] = end
    window = getattr(config, "sliding_window", None) if kind in ("", "sliding_attention") else None
    firsts = positions - (NUM_TOKENS if window is None else window) + 1
    in_window = positions >= firsts[:, None]
    if torch.equal(mask[0, 0], in_window & (positions < ends[:, None])):
        return True
    if torch.equal(mask[0, 0], in_window & (positions <= positions[:, None])):
        return False
    raise UnsupportedModelError(
        "its tokens attend to later ones in another way than in both directions inside an image"
    )
