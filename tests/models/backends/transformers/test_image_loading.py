"""Models that see, loaded from folders: what stays of their towers, and why some take no images."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from stonechat_models.backends.transformers.loading.load import load_transformers_model
from stonechat_models.backends.transformers.media_checks import images as image_check
from stonechat_models.backends.transformers.media_checks.images import image_case
from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.media.hf_processor import HFProcessor
from stonechat_models.media.positions import as_array
from stonechat_models.runtime.build import build_engine
from stonechat_models.types import MediaInput, MediaTensor
from tests.models.engines import CPU, add, greedy, run
from tests.models.tiny_loras import tiny_lora
from tests.models.vision_models import save_vision_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_vision_model(tmp_path_factory.mktemp("qwen") / "qwen3_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def token_id(folder):
    return json.loads((folder / "config.json").read_text())["image_token_id"]


@pytest.fixture(scope="module")
def prepared(folder, token_id):
    """The image of a prompt, and how many tokens it has."""
    pixels = np.random.default_rng(0).integers(0, 255, (96, 64, 3), dtype=np.uint8)
    _, num_tokens, arrays = HFProcessor(folder, "image", token_id).prepare(Image.fromarray(pixels))
    tensors = {k: MediaTensor(str(v.dtype), v.shape, v.tobytes()) for k, v in arrays.items()}
    return MediaInput(b"0" * 16, ((3, num_tokens),), tensors), num_tokens


def config(folder, **settings):
    sizes = {"kv_cache_bytes": 4 << 20, "max_model_len": 256, "threads": 1}
    return EngineConfig(
        model=str(folder), backend="transformers", device="cpu", **sizes, **settings
    )


def load(folder, **settings):
    engine_config = config(folder, **settings)
    files = resolve_model(engine_config, print)
    return load_transformers_model(files, engine_config, CPU, lambda line: None)


def test_the_tower_stays_as_it_is_when_weights_are_quantised(folder, prepared):
    module = AutoModelForImageTextToText.from_pretrained(folder).eval()
    image, num_tokens = prepared
    tensors = {k: torch.tensor(as_array(v)) for k, v in image.tensors.items()}
    with torch.inference_mode():
        expected = module.get_image_features(**tensors)
    model = load(folder, quantize="int8")
    assert model.info.images is not None
    assert "vision tower" in model.info.quantization
    assert "lm_head" not in model.info.quantization
    features = model.encode_media(image)
    assert len(features.embeddings) == num_tokens
    torch.testing.assert_close(features.embeddings, torch.cat(expected.pooler_output))
    layers = [
        layer if isinstance(layer, torch.Tensor) else torch.cat(layer)  # before transformers 5.18
        for layer in expected.deepstack_features
    ]
    torch.testing.assert_close(list(features.layer_embeddings), layers)
    assert torch.nn.Linear in {type(part) for part in tower_parts(model.module)}


def test_deterministic_answers_about_images(folder, prepared, token_id):
    engine, _ = build_engine(config(folder, deterministic=True), lambda line: None)
    image, num_tokens = prepared
    token_ids = [5, 6, 7, *[token_id] * num_tokens, 8, 9]
    add(engine, "alone", token_ids, greedy(5), media=(image,))
    alone = run(engine)["alone", 0]
    assert alone.error is None
    for i in range(3):
        text = list(range(10 + i, 30 + 3 * i))
        add(engine, f"other {i}", text, greedy(5))
    add(engine, "beside", [4, *token_ids], greedy(5), media=(replace_place(image, 4),))
    add(engine, "again", token_ids, greedy(5), media=(image,))
    again = run(engine)["again", 0]
    assert (again.token_ids, again.logprobs) == (alone.token_ids, alone.logprobs)


def replace_place(image, start):
    return MediaInput(image.content_hash, ((start, image.num_tokens),), image.tensors)


def test_a_step_that_differs_from_the_models_own_code_is_a_reason(folder):
    module = AutoModelForImageTextToText.from_pretrained(folder).eval()
    case = image_case(module)
    assert case.info.has_grid_positions
    model = load(folder)
    other = replace(case, rope_positions=case.rope_positions.clamp(max=9))
    info = image_check.with_images(model, other)
    assert info.images is None
    assert "other logits than the model's own code" in info.image_refusal
    assert image_check.with_images(model, case).images == case.info


def test_why_models_take_no_images(folder, tmp_path):
    module = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert "several devices" in image_case(module, num_ranks=2)
    assert image_case(module.model.language_model) == ""
    paligemma = save_vision_model(tmp_path / "paligemma", "paligemma")
    assert "attend to later ones" in load(paligemma).info.image_refusal


def test_code_that_raises_is_a_reason(folder, monkeypatch):
    module = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def fail(*arguments, **settings):
        raise ValueError("no such mask")

    monkeypatch.setattr(module.model, "get_rope_index", fail)
    assert image_case(module) == "a forward pass with images fails: no such mask"
    monkeypatch.setattr(image_check, "bidirectional_layers", fail)
    assert image_case(module).endswith("cannot be built: no such mask")


def test_a_tower_that_fails_at_load_is_a_reason(folder, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("CUDA out of memory")

    module = AutoModelForImageTextToText.from_pretrained(folder).eval()
    model = load(folder)
    model.info = replace(model.info, device="cuda:0")
    monkeypatch.setattr(image_check, "tower_memory", fail)
    files = resolve_model(config(folder), print)
    info = image_check.with_images(model, image_case(module), files)
    assert info.images is None
    assert info.image_refusal == "its vision tower fails: CUDA out of memory"


def test_a_folder_without_a_processor(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (copied / name).unlink()
    info = load(copied).info
    assert info.images is None
    assert "image processor" in info.image_refusal


def test_adapters_of_the_class_for_text_alone(tmp_path):
    """Qwen3.5 has two classes, with other names for the same layers."""
    folder = save_vision_model(tmp_path / "qwen3_5", "qwen3_5")
    assert load(folder).info.images is not None
    module = AutoModelForCausalLM.from_pretrained(folder)
    layers = [n for n, part in module.named_modules() if n.endswith("mlp.up_proj")]
    assert all(name.startswith("model.layers.") for name in layers)
    lora = tiny_lora(tmp_path / "lora", module, layers)
    info = load(folder, lora=(f"lora={tmp_path / 'lora'}",)).info
    assert [adapter.name for adapter in info.adapters] == [lora.name]
    assert info.image_refusal == "only its language model is served"
