"""`stonechat ray deploy` on this machine, with two engines of a tiny model.

It needs the extra `ray`; see CONTRIBUTING.md.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.models.tiny_models import save_tiny_model
from tests.models.tiny_tokenizers import save_byte_level
from tests.server.live import wait_until

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`"),
]
SECONDS_TO_START = 180
CONTEXT = 60_000


class Deployed:
    """A running deployment."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def replicas(self) -> list[psutil.Process]:
        """The processes of the engines."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just died
                if "ServeReplica:stonechat:Replica" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def ask(self, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/chat/completions", json=body(**fields))
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


def body(**fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "a long enough question for a block or two"}
    return {"model": "m", "messages": [message], "max_tokens": 16} | fields


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("ray")
    tokenizer = save_byte_level(folder / "tokenizer")
    save_tiny_model(
        folder / "model", "llama", tokenizer, vocab_size=269, max_position_embeddings=CONTEXT
    )
    port = 18_700 + os.getpid() % 1000
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root / "server"), str(root / "models")])
    words = ["ray", "deploy", "./model", "--served-model-name", "m", "--port", str(port)]
    words += ["--ledger", "off", "--files-dir", "off", "--keys-file", "off", "--dtype", "float32"]
    words += ["--max-num-seqs", "1", "--kv-cache-size", "64MiB"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stonechat_server.cli", *words],
            stdout=log, stderr=log, cwd=folder, env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
    deployed = Deployed(process, port)
    try:
        wait_until(lambda: _is_ready(deployed, folder / "log"), SECONDS_TO_START)
        yield deployed
    finally:
        deployed.client.close()
        process.terminate()
        process.wait(120)


def _is_ready(deployed: Deployed, log: Path) -> bool:
    assert deployed.process.poll() is None, log.read_text()
    try:
        return deployed.client.get("/ready").status_code == 200
    except httpx.HTTPError:
        return False


def test_the_same_seed_gives_the_same_answer_from_any_engine(deployed: Deployed) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: deployed.ask(seed=3), range(8)))
    assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {16}


def test_a_client_that_leaves_ends_its_request_in_the_engine(deployed: Deployed) -> None:
    """Each engine runs one sequence. Were the abandoned ones not aborted, they would run on for
    minutes, and the next request would time out."""
    for _ in range(4):
        long = body(stream=True, max_tokens=CONTEXT - 1000, ignore_eos=True)
        with deployed.client.stream("POST", "/v1/chat/completions", json=long) as answer:
            next(answer.iter_lines())
    assert deployed.ask()["usage"]["completion_tokens"] == 16


def test_errors_of_the_engine_reach_the_client(deployed: Deployed) -> None:
    answer = deployed.client.post("/v1/chat/completions", json=body(logit_bias={"999999": 1}))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logit_bias"


def test_the_death_of_an_engine_ends_its_streams_and_it_is_replaced(deployed: Deployed) -> None:
    before = {process.pid for process in deployed.replicas()}
    assert len(before) == 2
    long = body(stream=True, max_tokens=CONTEXT - 1000, ignore_eos=True)
    with deployed.client.stream("POST", "/v1/chat/completions", json=long) as answer:
        lines = answer.iter_lines()
        next(lines)
        for process in deployed.replicas():
            process.kill()
        events = [line for line in lines if line.startswith("data: ")]
    assert '"code":"engine_dead"' in events[-1]
    begin = time.monotonic()
    while {process.pid for process in deployed.replicas()} & before:
        assert time.monotonic() < begin + SECONDS_TO_START
        time.sleep(0.1)
    assert deployed.ask()["usage"]["completion_tokens"] == 16
