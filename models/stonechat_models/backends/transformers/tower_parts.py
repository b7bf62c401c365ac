"""Which parts of a module only images run through. They stay the model's own code.

They are a small part of a model, and images suffer more from rounding than text.
"""

from typing import Any

from torch import nn


def tower_parts(module: nn.Module) -> set[nn.Module]:
    """Return all modules that compute the embeddings of images; none for a model of text alone."""
    if getattr(getattr(module, "config", None), "vision_config", None) is None:
        return set()
    whole: Any = module
    text = {*whole.get_decoder().modules(), whole.get_output_embeddings()}
    return {part for part in module.modules() if text.isdisjoint(part.modules())}
