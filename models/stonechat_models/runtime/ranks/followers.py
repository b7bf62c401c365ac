"""The other ranks, as rank 0 sees them: it starts and watches them, and ends with any of them."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from stonechat_models.config import EngineConfig
from stonechat_models.errors import EngineDeadError, EngineError, ModelLoadError
from stonechat_models.runtime.ipc import Allocate, CopyBlocks, CountFree, LoadFailed, RunStep
from stonechat_models.runtime.runner import Died
from stonechat_models.runtime.worker_process import WorkerProcess, load_error

Rank = tuple[EngineConfig, Mapping[str, str]]
"""The settings and the environment variables of a rank."""
GiveUp = Callable[[EngineError], None]
"""Ends this process with a reason, from any thread. It does not return."""

PORT_VARIABLE = "MASTER_PORT"
STEP_SECONDS = 300.0
"""A step that takes longer is taken for one that never ends."""
SECONDS_TO_NOTICE = 1.0
"""Within this time the end of another process is noticed."""


class Followers:
    """The processes of ranks 1 and up. They end with this process, since their pipes close."""

    def __init__(self, ranks: Sequence[Rank], port: int, give_up: GiveUp) -> None:
        """Start a process for each of `ranks`. `port`: that of the store where all ranks meet."""
        self._give_up = give_up
        self._deadline: float | None = None
        self._children: list[WorkerProcess] = []
        self._loading: list[threading.Event] = []
        for rank, (config, environment) in enumerate(ranks, start=1):
            child = WorkerProcess(
                config,
                module="stonechat_models.runtime.ranks.follower",
                name=f"rank {rank}",
                environment={**environment, PORT_VARIABLE: str(port), "HF_HUB_OFFLINE": "1"},
            )
            is_loaded = threading.Event()
            self._children.append(child)
            self._loading.append(is_loaded)
            self._run_thread(f"stonechat-rank-{rank}", self._watch, rank, child, is_loaded)
        self._run_thread("stonechat-step-limit", self._limit_steps)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Load the model of rank 0 here; wait for the other ranks. If one ends, give up."""
        try:
            yield
        except Exception:
            time.sleep(SECONDS_TO_NOTICE)  # another rank's error may be the reason
            raise
        for is_loaded in self._loading:
            is_loaded.wait()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Compute here what all ranks compute. Gives up if that fails or does not end.

        After an error the ranks are no longer at the same place, so no step can follow.
        """
        self._deadline = time.monotonic() + STEP_SECONDS
        try:
            yield
        except Exception as error:
            time.sleep(SECONDS_TO_NOTICE)
            self._give_up(EngineDeadError(f"a step failed on rank 0: {error}"))
            raise
        finally:
            self._deadline = None

    def send(self, message: CountFree | Allocate | CopyBlocks | RunStep) -> None:
        """Send a message to all ranks. Gives up if one has ended."""
        data = self._children[0].pipe.encode(message)
        try:
            for child in self._children:
                child.pipe.send_encoded(data)
        except OSError:
            time.sleep(SECONDS_TO_NOTICE)
            self._give_up(EngineDeadError("a rank has ended"))
            raise

    def _run_thread(self, name: str, function: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=function, args=arguments, name=name, daemon=True).start()

    # --- in threads of this class's own ---

    def _watch(self, rank: int, child: WorkerProcess, is_loaded: threading.Event) -> None:
        try:
            child.load(lambda line: None)
        except ModelLoadError as error:
            self._give_up(error)
        is_loaded.set()
        while (frame := child.receive()) is not None:
            if isinstance(frame, LoadFailed):
                self._give_up(load_error(frame.error, frame.message))
            if isinstance(frame, Died):
                self._give_up(EngineDeadError(frame.reason))
        self._give_up(EngineDeadError(f"rank {rank} {child.end(SECONDS_TO_NOTICE)}"))

    def _limit_steps(self) -> None:
        while True:
            time.sleep(SECONDS_TO_NOTICE)
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._give_up(
                    EngineDeadError(f"a step has not ended within {STEP_SECONDS:.0f} seconds")
                )
