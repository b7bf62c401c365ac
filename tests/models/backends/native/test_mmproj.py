"""GGUF models with their vision part in a file of its own answer as plain transformers does."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from stonechat_models.backends.native import footprint
from stonechat_models.checkpoint.gguf.projectors import vision
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import survey_model
from stonechat_models.hardware.device import cpu_has_bfloat16
from stonechat_models.media.hf_processor import HFProcessor
from stonechat_models.media.tower import load_tower
from stonechat_models.media.video.processor import VideoProcessor
from stonechat_models.model_info import VideoInfo
from stonechat_models.runtime.build import build_engine
from tests.models.engines import add, greedy, run
from tests.models.media.compiled_models import (
    NUM_OUTPUT,
    TEXT_PARTS,
    check,
    check_text_alone,
    make_model,
)
from tests.models.media.prompts import Prompt, VisionModel, noise
from tests.models.media.video_prompts import VideoModel
from tests.models.media.videos import pictures, video_file
from tests.models.tiny_adapters import projections, write_adapter
from tests.models.tiny_mmproj import TEXTS, tower_tensors, write_mmproj, write_text
from tests.models.vision_models import ALL_FAMILIES, vision_tokenizer
from tests.nightly import nightly

IMAGES = [noise(size, seed) for seed, size in enumerate(((90, 130), (64, 64), (200, 70)))]
BACKENDS = ("native", "transformers")
FAMILIES = ("gemma3", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "lfm2_vl", "idefics3", "internvl")
OTHERS = ("qwen2_vl", "qwen3_5", "qwen3_5_moe", "mistral3", "smolvlm")
DAILY = [
    *((name, "native") for name in FAMILIES),
    *(("qwen3_vl_moe", "transformers"), ("gemma4_small", "transformers")),
]
"""PyTorch loads the same parts as the compiled path."""
GEMMA4 = ("gemma4", "transformers")
"""By night: `test_audio_mmproj` has it too."""
PADDING = vision_tokenizer(ALL_FAMILIES["gemma4_small"]).pad_token_id
LFM2 = ALL_FAMILIES["lfm2_vl"].image_processor
LFM2_LIMITS = {key: LFM2[key] for key in vision.LFM2_LIMITS}


@pytest.fixture(autouse=True)
def empty_cache(model_cache: None) -> None:
    pass


def engine_of(path: Path, **settings: Any) -> tuple[Any, HFProcessor]:
    config = EngineConfig(model=str(path), device="cpu", threads=1, max_model_len=4096)
    engine, tokenizer = build_engine(replace(config, **settings), lambda line: None)
    assert engine.model.info.images is not None, engine.model.info.image_refusal
    return engine, HFProcessor(tokenizer.path.parent, "image", engine.model.info.images.token_id)


def written(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[VisionModel, Path, Path]:
    """Return a tiny model, and the paths of its two files in `folder`."""
    monkeypatch.setattr(vision, "GEMMA4_TOKENS", 70)  # as the families' own processor has it
    monkeypatch.setattr(vision, "LFM2_LIMITS", LFM2_LIMITS)
    is_compiled = name in TEXT_PARTS
    place = folder / "folder"
    model = make_model(place, name, monkeypatch) if is_compiled else VisionModel(place, name)
    # A GGUF file names the tokenizer's token, whose embeddings Gemma 4 has in the place of images.
    if name == "gemma4_small":
        model.module.config.get_text_config().pad_token_id = PADDING
    path = write_text(model, name, folder / "model-Q4.gguf")
    return model, path, write_mmproj(model, name, folder / "mmproj-F32.gguf")


def prompts_of(model: VisionModel) -> dict[str, Prompt]:
    return {
        "one": model.prompt("Look: # What is it?", IMAGES[0]),
        "two": model.prompt("Is # like # or not?", *IMAGES[1:3]),
        "text": model.prompt("No image at all"),
    }


def check_answers(model: VisionModel, engine: Any, processor: HFProcessor) -> None:
    """The prompts and the answers to them are those of the model's folder."""
    expected = prompts_of(model)
    model.processor = processor
    for key, prompt in prompts_of(model).items():
        assert prompt.token_ids == expected[key].token_ids
        assert prompt.media == expected[key].media
        params = greedy(NUM_OUTPUT, ignore_eos=True)
        add(engine, key, prompt.token_ids, params, media=prompt.media)
    results = run(engine)
    for key, prompt in expected.items():
        check(model, results[key, 0], prompt)


@pytest.mark.parametrize("name", ["qwen3_vl", *nightly("internvl")])
def test_answers_to_videos_equal_plain_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared as by a folder that says nothing of videos."""
    model = make_model(tmp_path / "folder", name, monkeypatch, VideoModel)
    path = write_text(model, name, tmp_path / "model-Q4.gguf")
    write_mmproj(model, name, tmp_path / "mmproj-F32.gguf")
    config = EngineConfig(model=str(path), device="cpu", threads=1, max_model_len=4096)
    engine, tokenizer = build_engine(config, lambda line: None)
    assert engine.model.info.video == VideoInfo(token_id=model.video_id)
    (model.folder / "video_preprocessor_config.json").unlink()
    file = video_file(pictures(20, model.family.sizes[0]))
    prompts = []
    for folder in (model.folder, tokenizer.path.parent):
        model.videos = VideoProcessor(folder, model.video_id)
        prompts.append(model.video_prompt("Look: @ What happens?", file))
    assert prompts[0].media == prompts[1].media
    add(
        engine,
        "a",
        prompts[1].token_ids,
        greedy(NUM_OUTPUT, ignore_eos=True),
        media=prompts[1].media,
    )
    check(model, run(engine)["a", 0], prompts[0])


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *DAILY,
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                ("gemma4", "transformers"),
                *itertools.product((*FAMILIES, *OTHERS), BACKENDS),
            )
            if case not in DAILY
        ),
    ],
)
def test_answers_equal_plain_transformers(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, _ = written(name, tmp_path, monkeypatch)
    engine, processor = engine_of(path, backend=backend)
    check_answers(model, engine, processor)


@pytest.mark.nightly
def test_older_files_of_mistral_are_of_llamas_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEXTS, "mistral3", TEXTS["idefics3"])
    model, path, _ = written("mistral3", tmp_path, monkeypatch)
    engine, processor = engine_of(path, backend="native")
    check_answers(model, engine, processor)


def test_quantised_parts_and_names_of_early_converters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices may be F16, and the two of a feed-forward block may have each other's name."""
    model = make_model(tmp_path / "folder", "gemma3", monkeypatch)
    with torch.no_grad():
        for parameter in model.module.model.vision_tower.parameters():
            parameter.copy_(parameter.half().float())
    swapped = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    tensors = {
        re.sub("ffn_(?:up|down)", lambda match: swapped[match[0]], name): values
        for name, values in tower_tensors(model, "gemma3").items()
    }
    path = write_text(model, "gemma3", tmp_path / "model.gguf")
    kind = gguf.GGMLQuantizationType.F16
    write_mmproj(model, "gemma3", tmp_path / "mmproj.gguf", kind, tensors)
    engine, processor = engine_of(path, backend="native")
    check_answers(model, engine, processor)


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_a_tower_is_as_exact_as_its_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, part = written("gemma3", tmp_path, monkeypatch)
    write_mmproj(model, "gemma3", part, gguf.GGMLQuantizationType[kind])
    files = resolve_model(EngineConfig(model=str(path)), lambda line: None)
    tower = load_tower(files, (), threads=1)
    is_short = kind == "BF16" and cpu_has_bfloat16()
    assert tower.dtype is (torch.bfloat16 if is_short else torch.float32)
    expected = model.module.get_submodule("model.vision_tower").state_dict()
    for name, value in tower.module.get_submodule("model.vision_tower").state_dict().items():
        assert value.dtype is tower.dtype
        torch.testing.assert_close(value.float(), expected[name], rtol=2**-8, atol=1e-6)


def test_a_vocabulary_may_lack_the_placeholder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of Gemma 3 do that were made from its SentencePiece model."""
    model = make_model(tmp_path / "folder", "gemma3", monkeypatch)
    path = write_text(model, "gemma3", tmp_path / "model.gguf", without="<image_soft_token>")
    write_mmproj(model, "gemma3", tmp_path / "mmproj.gguf")
    engine, processor = engine_of(path, backend="native")
    check_answers(model, engine, processor)


def test_an_adapter_of_the_text_is_merged_beside_a_part_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, part = written("gemma3", tmp_path, monkeypatch)
    text = torch.nn.ModuleDict({"model": model.module.get_decoder()})
    products = write_adapter(tmp_path / "adapter", text, projections())
    engine, processor = engine_of(path, adapter=str(tmp_path / "adapter"), mmproj=str(part))
    for name, product in products.items():
        text.get_submodule(name).weight += 6 / 4 * torch.from_numpy(product).float()
    check_answers(model, engine, processor)
    config = EngineConfig(model=str(path), lora=(f"x={tmp_path / 'adapter'}",), mmproj=str(part))
    (beside,) = resolve_model(config, lambda line: None).adapters
    expected = {f"model.language_model.{name.removeprefix('model.')}.weight" for name in products}
    assert beside.layers.keys() == expected <= model.module.state_dict().keys()


def test_a_plan_counts_the_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path, _ = written("qwen3_vl", tmp_path, monkeypatch)
    config = EngineConfig(model=str(path), device="cpu")
    planned = footprint(read_headers(config, lambda line: None), config)
    engine, _ = engine_of(path)
    tower_bytes = sum(p.nbytes for p in model.module.model.visual.parameters())
    assert planned.weight_bytes == engine.model.info.weight_bytes + tower_bytes
    survey = survey_model(config, lambda line: None)
    assert (survey.refusal, survey.may_take_images, survey.image_refusal) == (None, True, "")


def test_text_alone_does_not_import_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, _ = written("idefics3", tmp_path, monkeypatch)
    engine_of(path)  # describes the two files as one model, once
    check_text_alone(path)
