"""A part of a plan that runs, for `day`."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plans import Part

GRACE_SECONDS = 3.0
"""From the interruption of a part at its limit until it is killed."""
KILL_SECONDS = 10.0
"""How long a killed part may take to end. Then the next one begins."""
SAVE_SECONDS = 15.0
"""How often results are saved while a part runs."""


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

    def finish(self, save: Callable[[], None]) -> None:
        """Wait for its end, at its limit at the latest. Nothing that it started outlives it.

        `save` is called meanwhile: the machine may end at any time.
        """
        try:
            self.entry["end"] = self._wait(save)
        finally:
            end_session(self.process)
        self.entry["seconds"] = round(time.monotonic() - self.started, 1)
        shown = self.folder / self.part.shown
        if shown.is_file():
            say(last_lines(shown, 0, self.part.tail))
        else:
            say(last_lines(self.log, self.offset, self.part.tail))
        say(f"=== {self.part.name}: {self.entry['end']}, {self.entry['seconds']} s")

    def _wait(self, save: Callable[[], None]) -> str:
        end = self.started + self.limit - GRACE_SECONDS
        while (left := end - time.monotonic()) > SAVE_SECONDS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return _named(self.process.wait(SAVE_SECONDS))
            save()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _named(self.process.wait(max(0.1, left)))
        self.process.send_signal(signal.SIGINT)  # pytest and the bench then write results
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        return f"stopped after {self.limit:.0f} s"


def _named(status: int) -> str:
    return "ok" if status == 0 else f"failed with status {status}"


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, in whatever process groups."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may keep what hangs in it
        process.wait(KILL_SECONDS)


def last_lines(path: Path, offset: int, number: int) -> str:
    """The last lines of what stands behind `offset`, or of a file that has been cut since."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(offset if offset <= size else 0, size - 100_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(line[:260] for line in lines[-number:])


def say(line: str) -> None:
    print(line, flush=True)
