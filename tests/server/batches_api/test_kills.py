"""A batch whose server is killed: each request has one result, and runs no more once it has it."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from stonechat_server.access.auth import Authenticator, Identity
from stonechat_server.batches_api.lines import Answered
from stonechat_server.batches_api.run import Collaborators
from stonechat_server.batches_api.runner import BatchRunner
from stonechat_server.storage.batches import new_batch
from stonechat_server.storage.files import FileLimits, new_file_id
from stonechat_server.storage.storage import Storage
from stonechat_server.storage.tables import StoredBatch, StoredFile
from tests.server.batches_api.batch_files import ENDED, jsonl, line
from tests.server.bodies import URL
from tests.server.live import wait_until

T = TypeVar("T")
NAMES = [f"r{i}" for i in range(5)]
ROOT = Path(__file__).parents[3]
SERVER = [sys.executable, "-m", "tests.server.batches_api.scripted_server"]


class KilledError(BaseException):
    """The process is dead: nothing of it reaches the disk any more."""


class MortalStorage(Storage):
    """Dies at one of its calls, before or after its effect. Later calls have none."""

    num_calls_left: int | None = None
    dies_before = False
    is_dead = False

    async def run(self, work: Callable[..., T], *args: object, **named: object) -> T:
        if self.num_calls_left is not None:
            self.num_calls_left -= 1
        is_last = self.num_calls_left == 0
        if self.is_dead or (is_last and self.dies_before):
            self.is_dead = True
            raise KilledError
        result = await super().run(work, *args, **named)
        if is_last:
            self.is_dead = True
            raise KilledError
        return result


class Life:
    """One process with a batch runner, whose answers name their requests."""

    def __init__(self, folder: Path) -> None:
        limits = FileLimits(max_file_bytes=10**6, max_files=10, max_bytes=10**6)
        self.storage = MortalStorage(f"sqlite:///{folder / 'files.db'}", folder, limits, 10)
        self.answered: list[str] = []
        self.fails = {"r1", "r4"}
        self.num_keys: int | None = None
        """How often the key of the batch is still found; None: always."""

    async def answer(self, path: str, body: bytes, identity: Identity) -> Answered:
        name = json.loads(body)["messages"][0]["content"].split()[-1].rstrip(".")
        await asyncio.sleep(0)
        self.answered.append(name)
        return Answered(400 if name in self.fails else 200, f"req_{name}", b"{}")

    def find_owner(self, name: str) -> Identity | None:
        if self.num_keys is not None:
            self.num_keys -= 1
            if self.num_keys < 0:
                return None
        return Authenticator([]).for_batches(name)

    def runner(self) -> BatchRunner:
        return BatchRunner(
            Collaborators(
                storage=self.storage,
                answer=self.answer,
                find_owner=self.find_owner,
                model_of=lambda name, identity: name or "tiny-test",
                is_served=lambda name: True,
                max_body_bytes=10_000,
                num_at_once=2,
            )
        )

    def make_batch(self) -> StoredBatch:
        store = self.storage.files
        content = store.new_upload()
        content.write_bytes(jsonl(map(line, NAMES)))
        file = StoredFile(
            id=new_file_id(),
            owner="anonymous",
            filename="in.jsonl",
            purpose="batch",
            num_bytes=content.stat().st_size,
            created=time.time(),
            expires_at=None,
        )
        store.keep(content, file)
        batch = new_batch("anonymous", URL, file.id, time.time(), 86_400)
        self.storage.batches.add(batch)
        return batch

    async def live(self) -> None:
        """Run until the batches have ended, or until the death."""
        runner = self.runner()
        runner.start()
        try:
            while not self.storage.is_dead:
                await asyncio.sleep(0.005)
                if not self.storage.batches.unfinished():
                    break
        finally:
            await runner.close()

    def close(self) -> None:
        self.storage.close()

    def results(self, batch: StoredBatch) -> dict[str, Any]:
        """The results by id: once each, in the file for their status."""
        found: dict[str, Any] = {}
        for file_id, fails in ((batch.output_id, False), (batch.errors_id, True)):
            file = self.storage.files.find("anonymous", file_id)
            content = self.storage.files.path(file_id).read_bytes()
            assert file.num_bytes == len(content)
            for text in content.splitlines():
                value = json.loads(text)
                assert value["custom_id"] not in found
                assert (value["custom_id"] in self.fails) is fails
                found[value["custom_id"]] = value
        return found


def recorded(folder: Path, batch: StoredBatch) -> set[str]:
    """The ids of the complete lines of results on the disk."""
    names = set()
    for file in (f"{batch.id}.output", f"{batch.id}.errors", batch.output_id, batch.errors_id):
        with suppress(FileNotFoundError):
            for text in (folder / file).read_bytes().splitlines(keepends=True):
                if text.endswith(b"\n"):
                    names.add(json.loads(text)["custom_id"])
    return names


@pytest.mark.parametrize("dies_before", [pytest.param(True, marks=pytest.mark.nightly), False])
def test_a_kill_at_any_point_loses_and_repeats_nothing(tmp_path: Path, dies_before: bool) -> None:
    num_deaths = 0
    for num_calls in range(1, 100):
        folder = tmp_path / str(num_calls)
        folder.mkdir()
        first = Life(folder)
        batch = first.make_batch()
        first.storage.num_calls_left, first.storage.dies_before = num_calls, dies_before
        asyncio.run(first.live())
        first.close()
        had = recorded(folder, batch)
        is_written = any((folder / id).exists() for id in (batch.output_id, batch.errors_id))
        for ending in ("output", "errors"):  # what a kill in a write leaves
            path = folder / f"{batch.id}.{ending}"
            if path.exists() and not is_written:
                with path.open("ab") as file:
                    file.write(b'{"id": "batch_req_1", "custom_id": "r')
        second = Life(folder)
        asyncio.run(second.live())
        end = second.storage.batches.find("anonymous", batch.id)
        assert end.status == "completed"
        assert (end.num_total, end.num_completed, end.num_failed) == (5, 3, 2)
        assert set(second.results(end)) == set(NAMES)
        assert not had & set(second.answered)
        others = ("files.db", f"{batch.id}.lock")  # the lock is swept an hour later
        left = {p.name for p in folder.iterdir() if not p.name.startswith(others)}
        assert left == {batch.input_file_id, batch.output_id, batch.errors_id}
        second.close()
        if not first.storage.is_dead:
            break
        num_deaths += 1
    assert 8 < num_deaths < 90


def test_a_server_without_the_key_leaves_a_batch_to_one_that_has_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        without.num_keys = 3  # the key goes while the batch runs
        first, second = without.runner(), having.runner()
        for _ in range(2):
            first.begin(batch)
            await asyncio.wait(first._tasks.running, timeout=120)
            assert first.batches == []
        second.begin(batch)
        await asyncio.wait(second._tasks.running, timeout=120)
        await first.close()
        await second.close()

    without, having = Life(tmp_path), Life(tmp_path)
    batch = without.make_batch()
    asyncio.run(scenario())
    ended = having.storage.batches.find("anonymous", batch.id)
    assert ended.status == "completed"
    assert set(having.results(ended)) == set(NAMES)
    assert sorted(without.answered + having.answered) == NAMES
    assert without.answered
    without.close()
    having.close()


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([*SERVER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url, f"the server ended with {process.wait()}"
    return process, url


def end(process: subprocess.Popen[str], sign: int) -> None:
    with process:  # closes its pipe
        process.send_signal(sign)
        process.wait(60)


@pytest.mark.nightly
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_real_server_that_is_killed_again_and_again(tmp_path: Path, sign: int) -> None:
    generator = random.Random(sign)
    names = [f"r{i}" for i in range(150)]
    process, url = start_server(tmp_path)
    content = jsonl(line(name) for name in names)
    file = httpx.post(
        url + "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)}
    ).json()
    body = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
    batch = httpx.post(url + "/v1/batches", json=body).json()
    output = tmp_path / "files" / f"{batch['id']}.output"
    num_lines = num_kills = 0
    while num_lines < 100:
        num_lines += generator.randint(5, 30)
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= num_lines)  # noqa: B023
        end(process, sign)
        num_kills += 1
        process, url = start_server(tmp_path)
    while batch["status"] not in ENDED:
        batch = httpx.get(f"{url}/v1/batches/{batch['id']}").json()
        time.sleep(0.01)
    assert num_kills >= 4
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 150, "completed": 150, "failed": 0}
    answer = httpx.get(f"{url}/v1/files/{batch['output_file_id']}/content").text
    found = [json.loads(text) for text in answer.splitlines()]
    assert sorted(value["custom_id"] for value in found) == sorted(names)
    end(process, signal.SIGKILL)
