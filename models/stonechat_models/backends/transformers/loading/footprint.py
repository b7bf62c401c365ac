"""Calculates what a model takes once it is loaded, from its module without weights."""

import copy

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from stonechat_models.backends.quantization.cpu_linear import LinearTeam
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.kinds import auto_class, empty_module
from stonechat_models.backends.transformers.loading.load import LoadSettings
from stonechat_models.backends.transformers.loading.quantize import quantize_module
from stonechat_models.backends.transformers.loading.split import splits_keys, splits_of
from stonechat_models.backends.transformers.packing_check import check_window, probe_layers
from stonechat_models.backends.transformers.recurrent import (
    PROBE_LENGTH,
    StateShape,
    keeps_recurrent_state,
    probe_states,
)
from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.backends.transformers.verify import random_prompts
from stonechat_models.checkpoint.headers import Footprint
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import EngineError

META = torch.device("meta")


class EmptyModel:
    """A model on the meta device, where weights have shapes but no data."""

    def __init__(self, module: nn.Module, expert_share: float) -> None:
        self.module = module
        self.num_kv_elements = 0
        """How many elements the keys and values of one token have, over all layers. 0: not known"""
        self.runs_plainly = False
        """Whether it runs with transformers' own cache, whose size is not known before loading."""
        self._state_shapes: list[StateShape] = []
        self._expert_share = expert_share

    @classmethod
    def build(cls, config: HFConfig) -> "EmptyModel | None":
        """Build the model. Return None for one whose own code would have to run.

        Raises `UnsupportedModelError` if it does not complete text, or transformers cannot build
        it.
        """
        if config.model_type not in CONFIG_MAPPING:
            return None
        module = empty_module(config, auto_class(config))
        return None if module is None else cls(module.eval(), config.expert_share)

    @property
    def keeps_state(self) -> bool:
        """Whether it keeps a recurrent state for each sequence."""
        return bool(self._state_shapes)

    @torch.no_grad()
    def probe(self) -> None:
        """Find out what each token and each sequence keeps, if the model runs without data."""
        self.module.to(torch.bfloat16)  # the products of experts on the meta device need it
        probe = ProbeContext([0, PROBE_LENGTH])
        try:
            if keeps_recurrent_state(self.module):
                self._state_shapes = probe_states(self.module, probe)
            else:
                probe, _ = probe_layers(self.module, random_prompts([1], 1).to(META))
                check_window(self.module, probe)
        except EngineError:
            self.runs_plainly = True
            return
        except Exception as error:  # some models read numbers of their tensors, which have no data
            lacks_data = isinstance(error, NotImplementedError) or "meta tensor" in str(error)
            self.runs_plainly = not lacks_data or not _calls_attention_functions(self.module)
            return
        self.num_kv_elements = sum(shape.num_elements for shape in probe.shapes.values())

    def footprint(
        self, settings: LoadSettings, kind: str, team: LinearTeam | None, num_ranks: int = 1
    ) -> Footprint:
        """Return what the model takes on a device of type `kind`, or on each of `num_ranks`."""
        module = self.module.to(settings.load_dtype)
        if settings.precision is not None:
            module = copy.deepcopy(module)
            quantize_module(module, settings.precision, team, kind)
        module.to(settings.dtype)
        sizes = {name: parameter.nbytes for name, parameter in module.named_parameters()}
        for name, part in module.named_modules():
            if isinstance(part, QuantizedLinear):
                sizes[name] = part.num_bytes
        splits = splits_of(module) if num_ranks > 1 else {}
        for name in splits.keys() & sizes.keys():  # a weight may be shared by two layers
            sizes[name] //= num_ranks
        total = sum(sizes.values())
        tower = sum(
            weight.nbytes
            for part in tower_parts(module)
            for weight in part.parameters(recurse=False)
        )
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        decode_bytes = total - tower - round(experts * (1.0 - self._expert_share))
        embedding = module.get_input_embeddings().weight  # type: ignore[operator]
        head = module.get_output_embeddings()  # type: ignore[operator]
        if getattr(head, "weight", None) is not embedding:
            names = [name for name, weight in module.named_parameters() if weight is embedding]
            decode_bytes -= sizes[names[0]]  # a step reads only single rows of it
        kv_bytes = self.num_kv_elements * settings.kv_dtype.itemsize
        kv_bytes //= num_ranks if splits_keys(splits) else 1
        state_bytes = sum(
            torch.Size(s.shape).numel()
            * (settings.dtype if s.dtype is torch.bfloat16 else s.dtype).itemsize
            for s in self._state_shapes
        )
        return Footprint(total, decode_bytes, kv_bytes, state_bytes)


def _calls_attention_functions(module: nn.Module) -> bool:
    """Whether transformers lists the model as one whose attention function can be replaced."""
    return bool(getattr(module, "_supports_attention_backend", True))
