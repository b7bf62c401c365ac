"""Which parts of a module only images or audio run through. They stay the model's own code.

They are a small part of a model, and media suffer more from rounding than text.
"""

from typing import Any

from torch import nn

TOWER_CONFIGS = ("vision_config", "audio_config")
"""Where the config of a model has those of its towers."""


def tower_parts(module: nn.Module) -> set[nn.Module]:
    """Return all modules that compute the embeddings of media; none for a model of text alone."""
    config = getattr(module, "config", None)
    if all(getattr(config, name, None) is None for name in TOWER_CONFIGS):
        return set()
    whole: Any = module
    text = {*whole.get_decoder().modules(), whole.get_output_embeddings()}
    return {part for part in module.modules() if text.isdisjoint(part.modules())}
