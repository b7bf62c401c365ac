"""Calculates what a model takes once it is loaded, from its module without weights."""

import copy

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from stonechat_models.backends.quantization.cpu_linear import LinearTeam
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.transformers.load import LoadSettings
from stonechat_models.backends.transformers.packing_check import probe_layers
from stonechat_models.backends.transformers.quantize import quantize_module
from stonechat_models.backends.transformers.verify import random_prompts
from stonechat_models.checkpoint.headers import Footprint
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import EngineError, UnsupportedModelError

META = torch.device("meta")


class EmptyModel:
    """A model on the meta device, where weights have shapes but no data."""

    def __init__(self, module: nn.Module, expert_share: float) -> None:
        self.module = module
        self.num_kv_elements = 0
        """How many elements the keys and values of one token have, over all layers. 0: not known"""
        self._expert_share = expert_share

    @classmethod
    def build(cls, config: HFConfig) -> "EmptyModel | None":
        """Build the model. Return None for one whose own code would have to run.

        Raises `UnsupportedModelError` if transformers cannot build it.
        """
        if config.model_type not in CONFIG_MAPPING:
            return None
        raw = {key: value for key, value in config.raw.items() if key != "quantization_config"}
        try:
            with META:
                module: nn.Module = AutoModelForCausalLM.from_config(
                    CONFIG_MAPPING[config.model_type].from_dict(raw), attn_implementation="eager"
                )
        except Exception as error:  # transformers raises many types; all mean the same here
            raise UnsupportedModelError(f"transformers cannot build the model: {error}") from error
        return cls(module.eval(), config.expert_share)

    @torch.no_grad()
    def probe(self) -> None:
        """Find `num_kv_elements`, if the model runs without data.

        Raises `UnsupportedModelError` with the reason if the paged engine cannot serve the model.
        """
        self.module.to(torch.bfloat16)  # the products of experts on the meta device need it
        try:
            probe, _ = probe_layers(self.module, random_prompts([1], 1).to(META))
        except EngineError:
            raise
        except Exception:  # some models read numbers of their tensors, which have no data here
            return
        self.num_kv_elements = sum(shape.num_elements for shape in probe.shapes.values())

    def footprint(self, settings: LoadSettings, kind: str, team: LinearTeam | None) -> Footprint:
        """Return what the model takes on a device of type `kind`."""
        module = copy.deepcopy(self.module).to(settings.load_dtype)
        if settings.precision is not None:
            quantize_module(module, settings.precision, team, kind)
        module.to(settings.dtype)
        sizes = {name: parameter.nbytes for name, parameter in module.named_parameters()}
        for name, part in module.named_modules():
            if isinstance(part, QuantizedLinear):
                sizes[name] = part.num_bytes
        total = sum(sizes.values())
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        decode_bytes = total - round(experts * (1.0 - self._expert_share))
        embedding = module.get_input_embeddings().weight  # type: ignore[operator]
        head = module.get_output_embeddings()  # type: ignore[operator]
        if getattr(head, "weight", None) is not embedding:
            decode_bytes -= embedding.nbytes  # a step reads only single rows of it
        kv_bytes = self.num_kv_elements * settings.kv_dtype.itemsize
        return Footprint(total, decode_bytes, kv_bytes)
