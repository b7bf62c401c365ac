"""The processes of the parts of `bench.py`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SCRIPT = Path(__file__).with_name("bench.py")
LEAST_SECONDS = 10.0
"""A part does not start if less time than this is left."""
GRACE_SECONDS = 6.0
"""A part starts no new measurement this long before its time limit."""
KILL_SECONDS = 5.0
"""How long a killed part may take to end. Then the next one begins."""
SECONDS = {"device": 60.0, "warm": 90.0, "model": 150.0, "http": 180.0, "compare": 60.0}
"""The time limit of a part, by kind."""


class Child:
    """The process of one part. It imports what it needs, and then waits for `begin`."""

    def __init__(
        self, name: str, notes: Path, words: list[str] | None, log: IO[bytes] | None = None
    ) -> None:
        """`notes`: the file of its results. `log` gets its output."""
        self.name = name
        self._notes = notes
        notes.unlink(missing_ok=True)
        command = [sys.executable, str(SCRIPT), *(words or sys.argv[1:])]
        self.process = subprocess.Popen(
            [*command, "--part", name, "--notes", str(notes)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            process_group=0,
        )

    def begin(self, seconds: float) -> None:
        """Let it start. It begins no new measurement shortly before the end of `seconds`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{time.time() + seconds - GRACE_SECONDS}\n".encode())
            self.process.stdin.flush()

    def run(self, seconds_left: float, results: dict[str, Any]) -> None:
        """Run it to its end or its time limit. Fill `results`, with an `error` if it failed."""
        if seconds_left < LEAST_SECONDS:
            print(f"{self.name}: skipped, out of time", flush=True)
            results["skipped"] = "out of time"
            self.end()
            return
        print(f"{self.name}:", flush=True)
        seconds = min(seconds_left, SECONDS[self.name.partition(" ")[0]])
        error = "interrupted"
        try:
            self.begin(seconds)
            status = self.process.wait(seconds)
            error = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
            error = error if status else ""
        except subprocess.TimeoutExpired:
            error = f"ended after {seconds:.0f} s"
        finally:
            self.end()
            if self._notes.is_file():
                results |= json.loads(self._notes.read_text())
            self._notes.unlink(missing_ok=True)
            if error:
                results.setdefault("error", error)
                print(f"  {results['error']}", flush=True)

    def end(self) -> None:
        """Kill it and what it started. After a clean end there is nothing left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may keep what hangs in it
            self.process.wait(KILL_SECONDS)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


class Children:
    """The processes of all parts in turn. Each is started, to import, while the one before runs."""

    def __init__(self, names: list[str], folder: Path, words: list[str] | None) -> None:
        self._left = [(name, folder / f"part-{i}.json", words) for i, name in enumerate(names)]
        self._next: Child | None = self._start()

    def _start(self) -> Child | None:
        return Child(*self._left.pop(0)) if self._left else None

    def __iter__(self) -> Iterator[Child]:
        while self._next is not None:
            child, self._next = self._next, None
            self._next = self._start()
            yield child

    def close(self) -> None:
        if self._next is not None:
            self._next.end()
