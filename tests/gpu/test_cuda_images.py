"""Prompts with images on a CUDA device: fused parts, kernels and graphs, against transformers.

The images' pixels are random numbers, so that no image is decoded here.
"""

import copy
import inspect
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.fused.replace import fuse_modules
from stonechat_models.backends.transformers.fused.rotary_table import tabulate_rotary
from stonechat_models.backends.transformers.media_checks.images import image_case, with_images
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.packing_check import check_packing
from stonechat_models.backends.transformers.verify import TOLERANCE
from stonechat_models.config import EngineConfig
from stonechat_models.runtime.assemble import assemble_engine
from stonechat_models.types import MediaInput, MediaTensor
from tests.gpu.built import build as build_folder
from tests.models.engines import add, greedy, model_info, run
from tests.models.vision_models import save_vision_model, vision_config

NUM_OUTPUT = 3
MAX_MODEL_LEN = 96
BLOCK_SIZE = 8


@dataclass(frozen=True)
class Family:
    """A small image of a family: its embeddings, and what the tower takes."""

    num_tokens: int
    pixels: tuple[int, ...]
    """The shape of `pixel_values`."""
    sizes: dict[str, list[int]]
    """Other arguments, one row each."""
    image_size: int = 0
    """The side of all its images, if its config says so and a smaller one is enough here."""


FAMILIES = {
    "qwen2_5_vl": Family(6, (24, 1176), {"image_grid_thw": [1, 4, 6]}),  # rotary positions of grids
    "qwen3_vl": Family(6, (24, 1536), {"image_grid_thw": [1, 4, 6]}),  # more for some layers
    "gemma3": Family(64, (1, 3, 224, 224), {}),  # attends in both directions
    "llava": Family(16, (1, 3, 56, 56), {}, image_size=56),  # a tower with a class token
    "mistral3": Family(4, (1, 3, 56, 56), {"image_sizes": [56, 56]}),  # all of its layer is fused
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def tensors_of(family, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.standard_normal(FAMILIES[family].pixels, dtype=np.float32)
    sizes = {name: np.array([row]) for name, row in FAMILIES[family].sizes.items()}
    return {"pixel_values": pixels, **sizes}


def prompt_of(family, image_token, seeds):
    """Return a prompt with text around each image, and its images."""
    token_ids, images = [40, 41, 42], []
    for seed in seeds:
        place = (len(token_ids), FAMILIES[family].num_tokens)
        tensors = {
            name: MediaTensor(value.dtype.name, value.shape, value.tobytes())
            for name, value in tensors_of(family, seed).items()
        }
        images.append(MediaInput(bytes([seed]) * 16, (place,), tensors))
        token_ids += [image_token] * place[1] + [50 + seed, 60]
    return token_ids, tuple(images)


def tiny_pair(family, device, dtype):
    """Return a tiny model on the device, and one of the same numbers in float32 on the CPU."""
    torch.manual_seed(0)
    config = vision_config(family)
    if FAMILIES[family].image_size:
        config.vision_config.image_size = FAMILIES[family].image_size
    reference = AutoModelForImageTextToText.from_config(config).float().eval()
    for name, parameter in reference.named_parameters():
        scale = 4 if parameter.dim() > 1 and "vision" not in name and "visual" not in name else 1
        parameter.data = (parameter.data * scale).to(dtype).float()
    module = copy.deepcopy(reference).to(device)
    for parameter in module.parameters():  # the buffers stay float32, as after loading
        parameter.data = parameter.data.to(dtype)
    return module.requires_grad_(False), reference.requires_grad_(False)


def build(module, device, dtype, max_batch_tokens):
    """Build an engine from `module` as a load of its files does."""
    vocab_size = module.config.get_text_config().vocab_size
    info = model_info(
        device=str(device), dtype=str(dtype).removeprefix("torch."), vocab_size=vocab_size
    )
    images = image_case(module)
    probe = check_packing(module, device, vocab_size)
    replaced = fuse_modules(module)
    assert replaced["FusedRMSNorm"]
    model = TransformersModel(module, info, choose_attention("auto", device), probe=probe)
    model.info = with_images(model, images)
    assert model.info.images is not None, model.info.image_refusal
    model.set_attention(choose_attention("triton", device, model.attention_parity_check))
    tabulate_rotary(module, MAX_MODEL_LEN)
    config = EngineConfig(
        model="tiny",
        block_size=BLOCK_SIZE,
        max_num_seqs=2,
        max_batch_tokens=max_batch_tokens,
        kv_cache_bytes=1 << 20,
    )
    return assemble_engine(
        model,
        config,
        device,
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=frozenset(),
        progress=lambda line: None,
    )


@torch.inference_mode()
def logprobs_of(reference, family, token_ids, output_ids, seeds):
    """Return what the model's own code says of each token of the output, float64[n]."""
    ids = torch.tensor([[*token_ids, *output_ids]])
    arguments = {}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inspect.signature(reference.forward).parameters:
            arguments[name] = (ids == reference.config.image_token_id).long()
    if seeds:
        pictures = [tensors_of(family, seed) for seed in seeds]
        for name in pictures[0]:
            arguments[name] = torch.from_numpy(np.concatenate([p[name] for p in pictures]))
    logits = reference(input_ids=ids, use_cache=False, **arguments).logits[0].double()
    rows = torch.log_softmax(logits[len(token_ids) - 1 : -1], dim=-1)
    return rows.gather(1, torch.tensor(output_ids)[:, None])[:, 0], float(logits.std())


@pytest.mark.alone
def test_the_vision_tower_of_a_folder_is_measured(device, tmp_path):
    """The KV cache leaves the room that the tower needs for a large image."""
    folder = save_vision_model(tmp_path / "model", "qwen2_5_vl")
    engine, lines = build_folder(folder, max_model_len=64)
    info = engine.model.info.images
    assert info is not None, engine.model.info.image_refusal
    assert info.encoding_bytes > 1 << 20, lines


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_prompts_with_images_beside_text(family, device, dtype):
    """Steps with images run without graphs, the others replay them."""
    module, reference = tiny_pair(family, device, dtype)
    if "mm_encoder_outputs" not in inspect.signature(reference.forward).parameters:
        pytest.skip("this transformers takes no images that are encoded before")
    num_tokens = FAMILIES[family].num_tokens
    engine = build(module, device, dtype, max_batch_tokens=max(16, num_tokens + 8))
    assert isinstance(engine.model, GraphedModel)
    steps = []
    shape_of = engine.model._shape_of

    def noted(batch):
        shape = shape_of(batch)
        steps.append((batch.media is not None, shape is not None))
        return shape

    engine.model._shape_of = noted
    image_token = engine.model.info.images.token_id
    cases = {"image": (1,), "text": (), "again": (1,)}
    if num_tokens < 20:
        cases["two"] = (2, 1)
    prompts = {name: prompt_of(family, image_token, seeds) for name, seeds in cases.items()}
    results = {}
    for names in (["image", "text"], [name for name in cases if name not in ("image", "text")]):
        for name in names:
            token_ids, images = prompts[name]
            add(engine, name, token_ids, greedy(NUM_OUTPUT, ignore_eos=True), media=images)
        results |= run(engine)
    assert {(has_images, in_graph) for has_images, in_graph in steps} == {
        (True, False),
        (False, True),
    }
    assert results["again", 0].num_cached_tokens > 0
    tolerance = TOLERANCE["logits"][dtype]
    for name, (token_ids, _) in prompts.items():
        result = results[name, 0]
        assert result.error is None
        assert len(result.token_ids) == NUM_OUTPUT
        expected, unit = logprobs_of(reference, family, token_ids, result.token_ids, cases[name])
        actual = torch.tensor([entry.logprob for entry in result.logprobs]).double()
        assert float((actual - expected).abs().max()) < 2 * tolerance * unit
