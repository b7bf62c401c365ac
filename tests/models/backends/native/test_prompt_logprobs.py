"""Log-probabilities of prompts on the compiled path are right, with the same bits in a batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.engine.engine import Engine
from stonechat_models.engine.overlapped import OverlappedEngine
from stonechat_models.types import SamplingParams
from tests.models.backends.native.native_helpers import (
    load_native,
    make_model,
    random_ids,
)
from tests.models.engines import add, greedy, reference_prompt, run

PROMPTS = [random_ids(n, seed=n) for n in (61, 2, 17, 33)]


def make_engine(files: ModelFiles, overlap: bool = False, **limits: int) -> Engine:
    model = load_native(files).model
    limits = {"max_num_seqs": 4, "max_batch_tokens": 96, "max_model_len": 128, **limits}
    model.info = replace(model.info, **limits)  # type: ignore[arg-type]
    engine_class = OverlappedEngine if overlap else Engine
    return engine_class(
        model,
        model.new_sampler(),
        eos_token_ids=frozenset(),
        device=None,
        prefix_caching=True,
    )


def scored(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 0, "prompt_logprobs": 4, **changes})


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "qwen3_5_text", "lfm2"])
@pytest.mark.parametrize("overlap", [False, True])
def test_equal_to_transformers_and_to_itself(family: str, overlap: bool, tmp_path: Path) -> None:
    module, files = make_model(family, tmp_path)
    alone = make_engine(files)
    for i, prompt in enumerate(PROMPTS):
        add(alone, str(i), prompt, scored())
    expected = run(alone)
    engine = make_engine(files, overlap, max_batch_tokens=23)
    engine.scheduler.prompt_rows.max_rows = 9
    for i, prompt in enumerate(PROMPTS):
        add(engine, f"chat{i}", prompt, greedy(8))
        add(engine, str(i), prompt, scored(max_tokens=3))
    results = run(engine)
    for i, prompt in enumerate(PROMPTS):
        entries = results[str(i), 0].prompt_logprobs
        assert entries is not None
        assert entries == expected[str(i), 0].prompt_logprobs
        rows = reference_prompt(module, prompt)
        for entry, row in zip(entries, rows, strict=True):
            # Keys and values are rounded to half precision.
            assert abs(entry.logprob - float(row[entry.token_id])) < 0.05
            assert entry.top_logprobs == pytest.approx(row.topk(4).values.tolist(), abs=0.05)
            surely_better, perhaps_better = (
                int((row > row[entry.token_id] + margin).sum()) for margin in (0.1, -0.1)
            )
            assert 1 + surely_better <= entry.rank <= 1 + perhaps_better


def test_a_token_has_the_same_bits_in_an_answer_and_in_a_prompt(tmp_path: Path) -> None:
    _, files = make_model("llama", tmp_path)
    engine = make_engine(files)
    add(engine, "answer", PROMPTS[2], SamplingParams(max_tokens=30, seed=1, top_logprobs=3))
    answer = run(engine)["answer", 0]
    add(engine, "prompt", PROMPTS[2] + answer.token_ids, scored(prompt_logprobs=3))
    entries = run(engine)["prompt", 0].prompt_logprobs
    assert entries is not None
    for own, again in zip(answer.logprobs, entries[-30:], strict=True):
        assert (own.token_id, own.logprob) == (again.token_id, again.logprob)
        assert (own.top_ids, own.top_logprobs) == (again.top_ids, again.top_logprobs)
        if again.rank <= 3:
            assert again.top_logprobs[again.rank - 1] == again.logprob
    assert torch.tensor([entry.rank for entry in entries]).float().mean() > 2
