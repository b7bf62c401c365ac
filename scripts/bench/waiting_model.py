"""An engine whose model computes nothing: its steps take as long as those of a model on a GPU.

Scheduler, batches, overlapped steps and results are real. A step is queued on a pretended device,
and only the reading of its tokens waits, without the interpreter lock. `STEP` in the environment
says what a step costs: `Costs` as JSON.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from stonechat_models import EngineConfig
from stonechat_models.backends.base import ForwardBatch
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.engine.overlapped import OverlappedEngine
from stonechat_models.model_info import ModelInfo
from stonechat_models.sampling.state import SampledTokens, SamplingState
from stonechat_models.text.tokenizer import Tokenizer

STEP = "BENCH_STEP_COSTS"
CPU = torch.device("cpu")
TEXT = Path(__file__).resolve().parents[2] / "tests" / "data" / "quality_text.txt"
LARGEST_GRAPH = 512


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of the device. The defaults are near those of a 1B model on an H200."""

    step: float = 900.0
    row: float = 9.5
    """Each sequence that decodes."""
    prompt_token: float = 3.8
    launch: float = 8000.0
    """What the host takes to launch a step that has no CUDA graph: one of over 512 tokens. A guess:
    in the measured run such steps, of 5,500 tokens, took the host 15 ms in all."""

    @classmethod
    def from_environment(cls) -> "Costs":
        return cls(**json.loads(os.environ.get(STEP, "{}")))


class Device:
    """Does one thing after the other, beside the host."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def queue(self, seconds: float) -> None:
        self.free_at = max(self.free_at, time.perf_counter()) + seconds

    @staticmethod
    def wait(until: float) -> None:
        if (rest := until - time.perf_counter()) > 0:
            time.sleep(rest)


class WaitingModel:
    def __init__(self, info: ModelInfo, device: Device, costs: Costs) -> None:
        self.info, self._device, self._costs = info, device, costs

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        num_rows, num_tokens, costs = len(batch.logits_index), len(batch.token_ids), self._costs
        num_decoding = sum([b - a == 1 for a, b in pairwise(batch.query_start_list)])
        microseconds = costs.step + num_decoding * costs.row
        microseconds += (num_tokens - num_decoding) * costs.prompt_token
        self._device.queue(1e-6 * microseconds)
        if num_tokens > LARGEST_GRAPH:
            end = time.perf_counter() + 1e-6 * costs.launch
            while time.perf_counter() < end:
                pass
        return torch.empty(num_rows, 1)

    def copy_blocks(self, pairs: object) -> None:
        pass


class TextSampler:
    """Gives each sequence the tokens of one text."""

    def __init__(self, tokens: Sequence[int], device: Device) -> None:
        self._tokens, self._device = tokens, device

    def launch(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> "Sampling":
        tokens, size = self._tokens, len(self._tokens)
        # A step is launched before the tokens of the one before it are known.
        ids = [tokens[(state.num_output_tokens + 1) % size] for state in states]
        return Sampling(torch.tensor(ids), self._device.free_at)


@dataclass
class Sampling:
    tokens: torch.Tensor
    ready_at: float

    def read(self) -> SampledTokens:
        Device.wait(self.ready_at)
        ids = self.tokens.tolist()
        return SampledTokens(ids, [None] * len(ids))


def build_waiting_engine(
    config: EngineConfig, progress: Callable[[str], None], give_up: object = None
) -> tuple[OverlappedEngine, Tokenizer]:
    """Stand in for `build_engine`."""
    tokenizer = Tokenizer.from_folder(resolve_model(config, progress).folder)
    info = ModelInfo(
        name="waiting",
        architecture="none",
        vocab_size=tokenizer.vocab_size,
        max_model_len=4096,
        device="cuda:0",
        dtype="none",
        quantization="none",
        backend="none",
        attention_backend="none",
        num_parameters=0,
        weight_bytes=0,
        weights_hash="0" * 16,
        block_size=16,
        num_blocks=1 << 16,
        kv_bytes_per_token=0,
        max_batch_tokens=8192,
        max_num_seqs=256,
        threads=1,
    )
    device = Device()
    engine = OverlappedEngine(
        WaitingModel(info, device, Costs.from_environment()),  # type: ignore[arg-type]
        TextSampler(tokenizer.encode(TEXT.read_text()), device),  # type: ignore[arg-type]
        eos_token_ids=tokenizer.eos_token_ids,
        device=CPU,
    )
    return engine, tokenizer
