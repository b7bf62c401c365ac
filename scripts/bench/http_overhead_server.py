"""The server that `http_overhead.py` measures, and the engine process that it reads tokens from.

Everything is real except the model. In a process of its own, `EngineThread` steps an engine that
emits the next token of a text for every sequence, at a fixed rate. Its frames cross the real pipe.
"""

import argparse
import gc
import itertools
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from stonechat_models import EngineConfig
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.model_info import EngineStats, ModelInfo
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import FinishReason, GenerateRequest, TokenLogprobs, TokenOutput

RATE = "BENCH_HTTP_TOKENS_A_SECOND"
TEXT = Path(__file__).resolve().parents[2] / "tests" / "data" / "quality_text.txt"
SAMPLE_SECONDS = 0.001

PARTS = {
    "frames and delivery": ("/stonechat_models/runtime/",),
    "output processing": ("/stonechat_models/text/",),
    "generation, chunks, parsers": (
        "/serving/",
        "/streaming/answer",
        "/chat_api/",
        "/parsers/",
        "/schema/",
    ),
    "admission and observability": ("/admission/", "/observability/", "/prometheus_client/"),
    "SSE and ASGI": (
        *("/streaming/sse", "/sse_starlette/", "/access/", "/starlette/", "/fastapi/"),
        "/uvicorn/protocols/",
    ),
}


@dataclass
class PacedEngine:
    """An engine as `EngineThread` needs it. Emits `rate` tokens a second over all sequences."""

    tokens: Sequence[int]
    info: ModelInfo
    rate: float
    running: dict[str, list[tuple[GenerateRequest, "itertools.count[int]"]]] = field(
        default_factory=dict
    )
    is_broken = False

    def __post_init__(self) -> None:
        self.model = SimpleNamespace(info=self.info)
        self._due = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add(self, request: GenerateRequest, constraints: Sequence[object] = ()) -> None:
        n = request.params.n
        self.running[request.request_id] = [(request, itertools.count(1)) for _ in range(n)]

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.running.pop(request_id, None)

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.running))

    def step(self) -> list[TokenOutput]:
        num_sequences = sum(map(len, self.running.values()))
        now = time.monotonic()
        self._due = max(self._due, now - 0.05) + num_sequences / self.rate
        if self._due > now:
            time.sleep(self._due - now)
        outputs = [
            self._output(request, index, next(count))
            for choices in self.running.values()
            for index, (request, count) in enumerate(choices)
        ]
        for output in outputs:
            if output.finish_reason is not None:
                self.running.pop(output.request_id, None)
        return outputs

    def _output(self, request: GenerateRequest, index: int, number: int) -> TokenOutput:
        tokens, top = self.tokens, request.params.top_logprobs
        token_id = tokens[number % len(tokens)]
        logprobs = None
        if top is not None:
            ids = tuple(tokens[(number + k) % len(tokens)] for k in range(top))
            logprobs = (TokenLogprobs(token_id, -0.5, ids, tuple(-0.5 - k for k in range(top))),)
        is_last = number >= (request.params.max_tokens or math.inf)
        return TokenOutput(
            request_id=request.request_id,
            index=index,
            token_ids=(token_id,),
            logprobs=logprobs,
            finish_reason=FinishReason.LENGTH if is_last else None,
            num_cached_tokens=0,
            scheduled_time=time.monotonic(),
        )


def no_model(
    name: str, tokenizer: Tokenizer, *, max_model_len: int, num_blocks: int, device: str = "none"
) -> ModelInfo:
    """Describe the model of an engine that has none: no weights, and a cache of no bytes."""
    return ModelInfo(
        name=name,
        architecture="none",
        vocab_size=tokenizer.vocab_size,
        max_model_len=max_model_len,
        device=device,
        dtype="none",
        quantization="none",
        backend="none",
        attention_backend="none",
        num_parameters=0,
        weight_bytes=0,
        weights_hash="0" * 16,
        block_size=16,
        num_blocks=num_blocks,
        kv_bytes_per_token=0,
        max_batch_tokens=8192,
        max_num_seqs=256,
        threads=1,
    )


def paced_engine(
    config: EngineConfig, progress: Callable[[str], None], give_up: object = None
) -> tuple[Any, Tokenizer]:
    """Stand in for `build_engine`: return an engine without a model, and the real tokenizer."""
    tokenizer = Tokenizer.from_folder(resolve_model(config, progress).folder)
    info = no_model("paced", tokenizer, max_model_len=1 << 20, num_blocks=1 << 20)
    return PacedEngine(tokenizer.encode(TEXT.read_text()), info, float(os.environ[RATE])), tokenizer


def run_child(file_descriptor: int) -> int:
    """Run the engine process."""
    from stonechat_models.runtime import build, worker_main

    build.build_engine = paced_engine
    return worker_main.main(file_descriptor)


def run_server(model: str, port_to: Path, profile_to: Path | None) -> int:
    """Serve on any free port until SIGTERM. Write the port to `port_to`."""
    from stonechat_models import AsyncEngine
    from stonechat_models.runtime.process_runner import EngineProcess, RestartPolicy
    from stonechat_models.runtime.worker_process import WorkerProcess
    from stonechat_server.app import create_app
    from stonechat_server.commands.serve import listen
    from stonechat_server.serving.http_server import serve
    from stonechat_server.settings import Settings

    gc.disable()
    config = EngineConfig(model=model)
    child = WorkerProcess(config, module="http_overhead_server")
    process = EngineProcess(config, child, child.load(lambda _: None), RestartPolicy(0))
    engine = AsyncEngine(process, Tokenizer.from_folder(process.tokenizer_folder))
    app = create_app(Settings(), engine)
    listener = listen("127.0.0.1", 0)
    samples: Counter[str] = Counter()
    if profile_to is not None:
        sample_parts(samples)
    gc.freeze()
    gc.enable()
    status = serve(app, listener, lambda: _write(port_to, listener.getsockname()[1]))
    if profile_to is not None:
        _write(profile_to, samples)
    return status


def sample_parts(samples: Counter[str]) -> None:
    """Count the part that the event loop's thread is in, every millisecond of CPU time."""

    def sample(number: int, frame: FrameType | None) -> None:
        samples[_part(frame)] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)


def _part(frame: FrameType | None) -> str:
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if name == "encode":
            return "JSON"
        for part, words in PARTS.items():
            for word in words:
                if word in path:
                    return part
        frame = frame.f_back
    return "event loop and sockets"


def _write(path: Path, value: object) -> None:
    incomplete = path.with_suffix(".part")
    incomplete.write_text(json.dumps(value))
    incomplete.rename(path)


def main() -> int:
    if sys.argv[1].isdigit():
        return run_child(int(sys.argv[1]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--port-to", type=Path, required=True)
    parser.add_argument("--profile-to", type=Path)
    arguments = parser.parse_args()
    return run_server(arguments.model, arguments.port_to, arguments.profile_to)


if __name__ == "__main__":
    sys.exit(main())
