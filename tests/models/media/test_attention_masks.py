"""Which layers look both ways, and that paged steps then equal the model's own forward pass."""

import pytest
import torch

from stonechat_models.backends.base import ForwardBatch, StepMedia
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.kinds import auto_class
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.engine.prompts.image_runs import visible_ends
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.attention_masks import bidirectional_layers, image_masks
from tests.models import every_family
from tests.models.engines import model_info

IMAGE = 200
"""The placeholder token. The prompts' text has lower ones."""
BLOCK_SIZE = 4
BLOCKS_PER_SEQUENCE = 20
LAYERS = {"gemma3": {0, 1, 2}, "gemma4": {0, 2}, "gemma4_unified": {0}}
"""The layers that look both ways. The sliding ones are the first and the third."""


def tiny_model(model_type):
    """A float32 model whose window, 16, is shorter than the longest image of the tests."""
    torch.manual_seed(0)
    config = every_family.tiny_config(model_type)
    config.image_token_id = config.image_token_index = IMAGE
    if model_type.startswith("gemma4"):
        config.get_text_config().use_bidirectional_attention = "vision"
    module = auto_class(every_family.hf_config(model_type)).from_config(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3 if "embed" in name else 0.2)
    return module.float().eval()


@pytest.fixture(scope="module", params=LAYERS)
def module(request):
    return tiny_model(request.param)


def prompt(runs, length, seed):
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(3, 190, (length,), generator=generator)
    for start, end in runs:
        token_ids[start:end] = IMAGE
    return token_ids


def reference(module, token_ids):
    """The logits of the model's own forward pass over a whole prompt, [T, V]."""
    is_image = token_ids == IMAGE
    module.set_attn_implementation("eager")
    name = "token_type_ids" if module.config.model_type == "gemma3" else "mm_token_type_ids"
    arguments = {name: is_image.long()[None]}
    if module.config.model_type == "gemma4_unified":
        masks = image_masks(type(module), module.config, is_image, torch.float32)
        arguments = {"attention_mask": masks}
    with torch.inference_mode():
        return module(input_ids=token_ids[None], use_cache=False, **arguments).logits[0]


def step_of(parts, prompts, runs):
    """The step that computes tokens start … end - 1 of sequence i, for each (i, start, end)."""
    query_start, tables, slots = [0], [], []
    for i, start, end in parts:
        positions = torch.arange(start, end)
        table = torch.arange(BLOCKS_PER_SEQUENCE).flip(0) + i * BLOCKS_PER_SEQUENCE
        tables.append(table)
        slots.append(table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE)
        query_start.append(query_start[-1] + end - start)
    ends = torch.cat([torch.from_numpy(visible_ends(runs[i], s, e)) for i, s, e in parts])
    nothing = torch.zeros(0, dtype=torch.int64)
    return ForwardBatch(
        token_ids=torch.cat([prompts[i][start:end] for i, start, end in parts]),
        positions=torch.cat([torch.arange(start, end) for _, start, end in parts]),
        slot_mapping=torch.cat(slots),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        context_lens=torch.tensor([end for _, _, end in parts], dtype=torch.int32),
        block_table=torch.stack(tables).int(),
        logits_index=torch.arange(query_start[-1]),
        query_start_list=query_start,
        context_lens_list=[end for _, _, end in parts],
        media=StepMedia(nothing, torch.zeros(0, 32), visible_ends=ends),
    )


RUNS = [[(2, 24), (25, 29)], [], [(0, 9)]]
LENGTHS = [40, 20, 12]
STEPS = {
    "whole prompts": [[(0, 0, 40), (1, 0, 20), (2, 0, 12)]],
    "in parts beside others": [
        [(0, 0, 2), (1, 0, 7)],
        [(1, 7, 8), (0, 2, 25), (2, 0, 9)],
        [(0, 25, 38), (2, 9, 10), (1, 8, 20)],
        [(2, 10, 12), (0, 38, 39)],
        [(0, 39, 40)],
    ],
    "from inside a cached image": [
        [(0, 0, 40), (2, 0, 12)],
        [(0, 12, 40), (2, 4, 12)],
        [(1, 0, 20)],
    ],
}


def check(module, backend, steps):
    prompts = [prompt(RUNS[i], LENGTHS[i], seed=i) for i in range(3)]
    expected = [reference(module, token_ids) for token_ids in prompts]
    model = TransformersModel(module, model_info(), backend)
    model.bidirectional_layers = bidirectional_layers(type(module), module.config)
    model.allocate_kv_cache(3 * BLOCKS_PER_SEQUENCE, BLOCK_SIZE)
    for parts in steps:
        logits = model.forward(step_of(parts, prompts, RUNS))
        wanted = torch.cat([expected[i][start:end] for i, start, end in parts])
        torch.testing.assert_close(logits, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_paged_steps_equal_the_models_own_forward(module, steps):
    check(module, BatchedBackend(), steps)


def test_steps_with_the_triton_kernels(module):
    pytest.importorskip("triton")
    from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend

    check(module, TritonBackend(8), [[(0, 0, 40)], [(0, 12, 30), (2, 0, 9)]])


def test_a_causal_mask_would_give_other_logits(module):
    """Else the test above could not fail."""
    token_ids = prompt(RUNS[0], 40, 0)
    module.set_attn_implementation("eager")
    with torch.inference_mode():
        causal = module(input_ids=token_ids[None], use_cache=False).logits[0]
    assert (causal - reference(module, token_ids))[2:].abs().max() > 0.1


def test_layers_that_look_both_ways(module):
    layers = bidirectional_layers(type(module), module.config)
    assert layers == LAYERS[module.config.model_type]


@pytest.mark.parametrize("model_type", ["gemma4", "qwen3_vl", "mistral3", "llava"])
def test_families_without_such_layers(model_type):
    module = every_family.tiny_model(model_type)
    assert bidirectional_layers(type(module), module.config) == frozenset()


@pytest.mark.parametrize("model_type", ["paligemma", "molmo2"])
def test_other_forms_of_attention_are_refused(model_type):
    """PaliGemma's whole prompt looks both ways, and so do all of Molmo 2's images together."""
    module = every_family.tiny_model(model_type)
    with pytest.raises(UnsupportedModelError, match="in another way"):
        bidirectional_layers(type(module), module.config)
