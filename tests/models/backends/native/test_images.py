"""A step with images equals transformers, and a row has the same bits in any step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stonechat_models.backends.native import NativeModel, supports
from stonechat_models.config import EngineConfig
from stonechat_models.errors import StepError
from tests.models.backends.native.composite_helpers import (
    COMPOSITES,
    IMAGE_ID,
    make_composite,
    make_prompt,
    reference_logits,
    step_of,
)
from tests.models.backends.native.native_helpers import (
    BUILDS,
    ROUNDING,
    library_of,
    load_native,
    random_ids,
)

BLOCKS = [7, 3, 11, 2, 20, 5]
RUNS = (23, 1, 12)


def error_of(actual: np.ndarray, expected: torch.Tensor) -> float:
    error = (torch.from_numpy(actual) - expected) / expected.std()
    return float(error.square().mean().sqrt())


def native(files: object, **settings: object) -> NativeModel:
    return load_native(files, **settings).model  # type: ignore[arg-type]


@pytest.mark.parametrize("family", COMPOSITES)
def test_prompts_with_images_equal_transformers(family: str, tmp_path: Path) -> None:
    module, files = make_composite(family, tmp_path)
    assert supports(files, EngineConfig(model="x")) is None
    model, prompt = native(files), make_prompt(family, RUNS)
    actual = model.forward(step_of([(prompt, 0, len(prompt.ids), BLOCKS)], all_rows=True))
    assert error_of(actual, reference_logits(module, prompt)) < ROUNDING
    text = random_ids(40, vocab_size=IMAGE_ID)
    with torch.inference_mode():
        expected = module(torch.tensor([text]), use_cache=False).logits[0]
    actual = model.forward(step_of([(text, 0, len(text), BLOCKS)], all_rows=True))
    assert error_of(actual, expected) < ROUNDING


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "qwen3_vl", "qwen3_5", "smolvlm"])
def test_chunks_and_other_sequences_change_no_bit(family: str, tmp_path: Path) -> None:
    """Chunks may end inside an image, but not in one that is seen both ways."""
    _, files = make_composite(family, tmp_path)
    model, prompt = native(files, quantize="int8"), make_prompt(family, RUNS)
    other, text = make_prompt(family, (9,), seed=1), random_ids(37, 1, IMAGE_ID)
    count = len(prompt.ids)
    whole = model.forward(step_of([(prompt, 0, count, BLOCKS)], all_rows=True))
    alone = model.forward(step_of([(text, 0, 37, [50, 51, 52])]))[0]
    assert np.array_equal(
        native(files, quantize="int8", threads=1).forward(
            step_of([(prompt, 0, count, BLOCKS)], all_rows=True)
        ),
        whole,
    )
    new_blocks = [40, 31, 33, 35, 37, 39]
    ends = prompt.visible_ends() if family == "gemma3" else np.arange(1, count + 1)
    for size in (1, 16, 30):
        start = 0
        while start < count:
            end = int(ends[min(start + size, count) - 1])
            rows = model.forward(
                step_of(
                    [
                        (other, 0, len(other.ids), [60, 61, 62]),
                        (prompt, start, end, new_blocks),
                        (text, 0, 37, [50, 51, 52]),
                    ]
                )
            )
            assert np.array_equal(rows[1], whole[end - 1])
            assert np.array_equal(rows[2], alone), "a text has the bits that it has alone"
            start = end


@pytest.mark.parametrize("architecture", BUILDS[1:])
@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_other_instruction_sets(
    architecture: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_of(architecture)
    monkeypatch.setattr(
        "stonechat_models.backends.native.model.load_library", lambda progress: library
    )
    module, files = make_composite(family, tmp_path)
    model, prompt = native(files), make_prompt(family, RUNS)
    actual = model.forward(step_of([(prompt, 0, len(prompt.ids), BLOCKS)], all_rows=True))
    assert error_of(actual, reference_logits(module, prompt)) < ROUNDING


def test_positions_of_text_in_three_rows_change_no_bit(tmp_path: Path) -> None:
    _, files = make_composite("qwen3_vl", tmp_path)
    model, text = native(files), random_ids(37, 1, IMAGE_ID)
    plain = step_of([(text, 0, 37, BLOCKS)], all_rows=True)
    expected = model.forward(plain)
    prompt = make_prompt("qwen3_vl", ())
    prompt.ids, prompt.is_image = text, np.zeros(37, dtype=np.bool_)
    prompt.rope_positions = np.tile(np.arange(37), (3, 1))
    actual = model.forward(step_of([(prompt, 0, 37, BLOCKS)], all_rows=True))
    assert np.array_equal(actual, expected)


def test_steps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, files = make_composite("gemma3", tmp_path)
    model, prompt = native(files), make_prompt("gemma3", (8,))
    count = len(prompt.ids)

    def refusal(**changes: object) -> str:
        batch = step_of([(prompt, 0, count, BLOCKS)])
        for name, value in changes.items():
            setattr(batch.media, name, value)
        with pytest.raises(StepError) as caught:
            model.forward(batch)
        return str(caught.value)

    rows = np.flatnonzero(prompt.is_image)
    assert "shape" in refusal(embeddings=np.zeros((8, 5)))
    assert "in order" in refusal(rows=rows[::-1].copy())
    assert "in order" in refusal(rows=rows + count)
    assert "one rotary position" in refusal(rope_positions=np.zeros((3, count), dtype=np.int64))
    ends = prompt.visible_ends()
    ends[-1] += 1
    assert "past its step" in refusal(visible_ends=ends)
    ends = prompt.visible_ends()
    ends[3] = 3
    assert "past its step" in refusal(visible_ends=ends)
    prompt.ids[0] = model.info.vocab_size
    assert "vocabulary" in refusal()
    prompt.ids[0], prompt.ids[rows[0]] = 1, 1 << 40
    model.forward(step_of([(prompt, 0, count, BLOCKS)]))
