"""Each family's answers to prompts with videos equal those of plain transformers."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from stonechat_models.media.hf_processor import as_tensors
from stonechat_models.media.positions import grid_positions
from stonechat_models.model_info import VideoInfo
from stonechat_models.types import MediaInput
from tests.models.engines import add, greedy, make_engine, run
from tests.models.media.prompts import Prompt
from tests.models.media.test_families import check
from tests.models.media.video_prompts import VIDEO_FAMILIES, VideoModel
from tests.models.media.videos import pictures, video_file

USUAL = ["qwen2_5_vl", "qwen3_vl", "gemma4", "glm4v"]
GRIDS = ["qwen2_5_vl", "qwen3_vl", "glm4v"]
VIDEO_INPUTS = ("video_grid_thw", "second_per_grid_ts")
NUM_OUTPUT = 5
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"max_batch_tokens": 8192},
    "in chunks": {"max_batch_tokens": 100, "media_cache_bytes": 4096},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], VideoModel]:
    """Makes a model by its name, and keeps the latest."""
    return lru_cache(1)(lambda name: VideoModel(tmp_path_factory.mktemp("models") / name, name))


def prompts(model: VideoModel) -> dict[str, Prompt]:
    files = [
        video_file(pictures(number, size))
        for number, size in zip((30, 41, 5), model.family.sizes, strict=True)
    ]
    return {
        "one": model.video_prompt("Look: @ What happens?", files[0]),
        "two": model.video_prompt("Is @ like @ or not?", *files[1:]),
        "again": model.video_prompt("Look: @ And @?", files[0], files[2]),
        "text": model.prompt("No video at all"),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in USUAL else pytest.mark.nightly) for n in VIDEO_FAMILIES],
)
def test_answers_equal_plain_transformers(
    models: Callable[[str], VideoModel], name: str, way: str
) -> None:
    model = models(name)
    requests = prompts(model)
    vocab_size = model.module.config.get_text_config().vocab_size
    engine = make_engine(
        model.module,
        media=True,
        **{"max_model_len": 8192, "vocab_size": vocab_size, "num_blocks": 3000, **WAYS[way]},
    )
    engine.model.info = replace(engine.model.info, video=VideoInfo(token_id=model.video_id))
    for key, prompt in requests.items():
        add(engine, key, prompt.token_ids, greedy(NUM_OUTPUT), media=prompt.media)
    results = run(engine)
    for key, prompt in requests.items():
        check(model, results[key, 0], prompt)


@pytest.mark.parametrize("name", GRIDS)
def test_positions_equal_those_of_transformers(
    models: Callable[[str], VideoModel], name: str
) -> None:
    """The pieces may come in any order."""
    model = models(name)
    prompt = prompts(model)["two"]
    positions, delta = grid_positions(model.module, prompt.token_ids, prompt.media[::-1])
    expected, expected_delta = model.module.model.get_rope_index(
        input_ids=torch.tensor([prompt.token_ids]),
        mm_token_type_ids=prompt.inputs["mm_token_type_ids"],
        **{key: v for key, v in prompt.inputs.items() if key in VIDEO_INPUTS},
    )
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert delta == int(expected_delta)


@pytest.mark.parametrize("name", GRIDS[:2])
def test_an_image_may_touch_a_video(models: Callable[[str], VideoModel], name: str) -> None:
    """Other templates than the published ones may have no text between them."""
    model, num_image = models(name), 4
    prompt = prompts(model)["again"]
    first = prompt.media[0].places[0][0]
    token_ids = [model.module.config.image_token_id] * num_image + prompt.token_ids[first:]
    grid = {"image_grid_thw": np.array([[1, 4, 4]])}
    media = [MediaInput(bytes(16), ((0, num_image),), as_tensors(grid))]
    for piece in prompt.media:
        places = tuple((start - first + num_image, length) for start, length in piece.places)
        media.append(MediaInput(piece.content_hash, places, piece.tensors, "video"))
    positions, delta = grid_positions(model.module, token_ids, media)
    kinds = [2 * (token_id == model.video_id) for token_id in token_ids]
    kinds[:num_image] = [1] * num_image
    expected, expected_delta = model.module.model.get_rope_index(
        input_ids=torch.tensor([token_ids]),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor([[1, 4, 4]]),
        **{key: v for key, v in prompt.inputs.items() if key in VIDEO_INPUTS},
    )
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert delta == int(expected_delta)


def test_videos_that_touch_are_two(models: Callable[[str], VideoModel]) -> None:
    """The second begins where a token behind the first would stand."""
    model = models("qwen2_5_vl")
    prompt = prompts(model)["two"]
    rope_index, grids = model.module.model.get_rope_index, prompt.inputs["video_grid_thw"]
    seconds = prompt.inputs["second_per_grid_ts"]
    expected, first = [], 0
    for i, grid in enumerate(grids):
        kinds = torch.tensor([[2] * (int(grid.prod()) // 4) + [0]])
        positions, _ = rope_index(
            input_ids=torch.zeros_like(kinds),
            mm_token_type_ids=kinds,
            video_grid_thw=grid[None],
            second_per_grid_ts=seconds[i : i + 1],
        )
        expected.append(positions[:, 0] + first)
        first = int(expected[-1][0, -1])
    media, start = [], 0
    for piece in prompt.media:
        places = ((start, piece.num_tokens),)
        media.append(MediaInput(piece.content_hash, places, piece.tensors, "video"))
        start += piece.num_tokens
    positions, delta = grid_positions(model.module, [model.video_id] * start + [5], media)
    whole = torch.cat([expected[0][:, :-1], expected[1]], dim=1).numpy()
    np.testing.assert_array_equal(positions, whole)
    assert delta == whole.max() - start
