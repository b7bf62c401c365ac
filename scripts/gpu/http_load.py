"""Puts `stonechat serve` under load, for `bench.py`.

It writes a model folder with random weights and an artificial tokenizer of the model's vocabulary
size, and uses the load generator of `stonechat bench`.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cores import busiest_cores

from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.workload import WORDS

SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}> {% endif %}"
)
MODEL_NAME = "random"
SECONDS_TO_EXIT = 20.0
LOG_LINES = 60
"""How many lines of the server's output are kept. The first ones are of its start."""
ACCESS = "stonechat.access"
"""Marks lines about requests, which are left out. While the server starts, many are refused."""


def save_model(module: Any, folder: Path) -> None:
    """Save weights, config, tokenizer and chat template to `folder`, as a checkpoint has them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    module.save_pretrained(folder)
    size = module.config.vocab_size
    merges = _merges(WORDS)
    texts = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    if len(texts) > size:
        raise ValueError(f"a vocabulary of {size} cannot hold the {len(texts)} tokens needed")
    texts += [f"Ġw{i}" for i in range(size - len(texts))]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": SPECIAL[2], "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return merges that join each word and the space before it into one token, by letters."""
    pairs: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(1, len(word) + 1):
            pairs["Ġ" + word[: end - 1], word[end - 1]] = None
    return list(pairs)


def measure_over_http(
    folder: Path,
    flags: Sequence[str],
    *,
    streams: int,
    num_requests: int,
    num_tokens: int,
    timeout: float,
    note: Callable[..., None],
) -> None:
    """Start `stonechat serve` on `folder`, wait for a first token, then measure.

    `note` gets figures by name, as they come. Raises `RuntimeError` if there is no token within
    `timeout` seconds, with the end of the server's output, or if a request fails.
    """
    started = time.perf_counter()
    with _server(folder, flags) as (process, port, log):
        url = f"http://127.0.0.1:{port}/v1"
        try:
            _wait_for_first_token(url, process, log, time.monotonic() + timeout)
            first = time.perf_counter() - started
        finally:
            note(server_log=_lines(log))
        print(f"  over HTTP: first token {first:.1f} s after the command", flush=True)
        note(seconds_from_command_to_first_token=first)
        settings = BenchSettings(
            base_url=url,
            concurrency=(streams,),
            num_requests=num_requests,
            input_tokens=num_tokens,
            output_tokens=num_tokens,
            warmup=streams,
            timeout=timeout,
        )
        with busiest_cores(process.pid) as cores:
            result = asyncio.run(run_bench(settings))
        (level,) = result.levels
        print(f"  over HTTP: {level.tokens_per_second:.0f} tokens/s", flush=True)
        note(
            tokens_per_second=level.tokens_per_second,
            num_errors=level.num_errors,
            first_token_p50_seconds=level.ttft.p50,
            first_token_p99_seconds=level.ttft.p99,
            between_tokens_p50_seconds=level.inter_token.p50,
            between_tokens_p99_seconds=level.inter_token.p99,
            busiest_cores=cores,
            load_generator_cores=level.generator_cpu,
            server_log=_lines(log),
            failed_checks=[f"{c.name}: {c.detail}" for c in result.checks if not c.passed],
        )
        if level.num_errors:
            raise RuntimeError(f"{level.num_errors} of {num_requests} requests failed")


def _lines(log: Path) -> list[str]:
    """The first lines of the server's output, without those about requests."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if ACCESS not in line][:LOG_LINES]


@contextlib.contextmanager
def _server(
    folder: Path, flags: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "stonechat_server.cli", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", MODEL_NAME, *flags]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    log = folder / "server.log"
    log.unlink(missing_ok=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    threading.Thread(target=_keep_lines, args=(process, log, started), daemon=True).start()
    try:
        yield process, port, log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS_TO_EXIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _keep_lines(process: subprocess.Popen[bytes], log: Path, started: float) -> None:
    """Write each line of the server's output with the seconds since `started`."""
    assert process.stdout is not None
    with log.open("w", encoding="utf-8", buffering=1) as file:
        for line in process.stdout:
            seconds = time.perf_counter() - started
            file.write(f"{seconds:6.2f} s  {line.decode(errors='replace').rstrip()}\n")


def _wait_for_first_token(
    url: str, process: subprocess.Popen[bytes], log: Path, deadline: float
) -> None:
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return _first_token(url, deadline)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:  # it is while the engine starts
                raise RuntimeError(f"{error.code}: {error.read()[:500]!r}") from error
            time.sleep(0.05)
        except OSError:  # not listening yet
            time.sleep(0.05)
    how = "sent no token in time" if process.poll() is None else f"exited with {process.returncode}"
    raise RuntimeError(f"the server {how}\n{log.read_text(errors='replace')[-2000:]}")


def _first_token(url: str, deadline: float) -> None:
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": "stone"}],
        "max_tokens": 8,
        "stream": True,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=max(1.0, deadline - time.monotonic())) as answer:
        for line in answer:
            data = line.removeprefix(b"data: ").strip()
            if not data.startswith(b"{"):
                continue
            choices = json.loads(data).get("choices")
            if choices and choices[0].get("delta", {}).get("content"):
                return
    raise RuntimeError("the first answer has no text")
