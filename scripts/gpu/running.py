"""A part of a plan that runs, for `day`."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plans import Part

GRACE_SECONDS = 3.0
"""From the interruption of a part at its limit until it is killed."""


@dataclass
class Running:
    """A part that runs. Its output goes to `log`, from `offset` on."""

    process: "subprocess.Popen[bytes]"
    part: Part
    entry: dict[str, Any]
    limit: float
    folder: Path
    log: Path
    offset: int
    started: float = field(default_factory=time.monotonic)

    def finish(self) -> None:
        """Wait for its end, at its limit at the latest. Nothing that it started outlives it."""
        self.entry["end"] = "interrupted"
        try:
            self.entry["end"] = self._wait()
        finally:
            end_session(self.process)
        self.entry["seconds"] = round(time.monotonic() - self.started, 1)
        shown = self.folder / self.part.shown
        if shown.is_file():
            say(last_lines(shown, 0, self.part.tail))
        else:
            say(last_lines(self.log, self.offset, self.part.tail))
        say(f"=== {self.part.name}: {self.entry['end']}, {self.entry['seconds']} s")

    def _wait(self) -> str:
        left = self.started + self.limit - GRACE_SECONDS - time.monotonic()
        try:
            status = self.process.wait(max(0.1, left))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)  # pytest and the bench then write results
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
            return f"stopped after {self.limit:.0f} s"
        return "ok" if status == 0 else f"failed with status {status}"


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, in whatever process groups."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(path: Path, offset: int, number: int) -> str:
    with path.open("rb") as file:
        file.seek(max(offset, path.stat().st_size - 100_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(line[:260] for line in lines[-number:])


def say(line: str) -> None:
    print(line, flush=True)
