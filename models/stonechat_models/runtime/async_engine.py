"""The engine for asyncio. A runner steps it, and only messages go in and out."""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stonechat_models.config import EngineConfig
from stonechat_models.errors import (
    EngineDeadError,
    EngineError,
    InvalidParamsError,
    PromptTooLongError,
)
from stonechat_models.hardware.gpu_files import sees_gpu
from stonechat_models.model_info import EngineStats, ModelInfo
from stonechat_models.runtime.process_runner import EngineProcess, RestartPolicy
from stonechat_models.runtime.runner import (
    Abort,
    Add,
    Died,
    EngineRunner,
    Report,
    StepOutputs,
    Stop,
)
from stonechat_models.text.output_processor import OutputProcessor, join_outputs
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import GenerateRequest, RequestOutput, TokenOutput

if TYPE_CHECKING:  # these import torch, which a server with an engine process does not need
    from stonechat_models.engine.batch_engine import BatchEngine
    from stonechat_models.engine.engine import Engine
    from stonechat_models.media.processor import MediaProcessor

logger = logging.getLogger(__name__)


class _Stream:
    """Holds the outputs of one live request for the one task that reads them."""

    __slots__ = ("_error", "_outputs", "_waiter", "processor")

    def __init__(self, processor: OutputProcessor) -> None:
        self.processor = processor
        self._outputs: list[RequestOutput] = []
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput | EngineError) -> None:
        """Add an output, or the error that ends the stream.

        Waiting outputs are read before the error. The first error counts.
        """
        if isinstance(output, RequestOutput):
            self._outputs.append(output)
        else:
            self._error = self._error or output
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> RequestOutput:
        """Wait for an output. Those that came since the last call are joined into one.

        Raises the error that was put once no output waits.
        """
        if not self._outputs and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if not self._outputs:
            assert self._error is not None
            raise self._error
        outputs, self._outputs = self._outputs, []
        return outputs[0] if len(outputs) == 1 else join_outputs(outputs)


class AsyncEngine:
    """The public engine. Build it with `from_config`, then `start` it in a running event loop."""

    def __init__(
        self, engine: "Engine | BatchEngine[Any] | EngineProcess", tokenizer: Tokenizer
    ) -> None:
        self.tokenizer = tokenizer
        self._runner: EngineRunner
        if isinstance(engine, EngineProcess):
            self._runner = engine
        else:
            from stonechat_models.runtime.thread_runner import EngineThread

            self._runner = EngineThread(engine, tokenizer)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, _Stream] = {}
        self._reports: deque[Report] = deque()
        """Reports that the event loop has not taken yet."""
        self._is_waking = False
        """True while a call of `_on_reports` waits in the event loop."""
        self._media_processor: MediaProcessor | None = None

    @classmethod
    def from_config(
        cls,
        config: EngineConfig,
        progress: Callable[[str], None] = lambda _: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> "AsyncEngine":
        """Load the model (blocking). `progress` gets one line for each slow task that starts.

        `meanwhile` is called once, while the model loads: in another thread if the engine has no
        process of its own.

        Raises `ModelLoadError` or `UnsupportedModelError`. The message is for users.
        """
        if _wants_process(config):
            process = EngineProcess.load(config, progress, meanwhile=meanwhile)
            return cls(process, Tokenizer.from_folder(process.tokenizer_folder))
        from stonechat_models.runtime.build import build_engine

        with ThreadPoolExecutor(1, "stonechat-meanwhile") as others:
            done = others.submit(meanwhile)
            built = build_engine(config, progress)  # here, so that Ctrl-C stops a download
            done.result()
        return cls(*built)

    @classmethod
    def in_process(
        cls,
        config: EngineConfig,
        progress: Callable[[str], None],
        is_wanted: Callable[[], bool],
        previous: "AsyncEngine | None" = None,
    ) -> "AsyncEngine":
        """Load the model in a process of its own (blocking), which no crash starts again.

        `is_wanted` is asked several times a second while the model loads. `previous` is an engine
        of the same config; its tokenizer is used again if the model's files are the same.

        Raises as `from_config` does, and `ModelLoadError` once the model is not wanted.
        """
        process = EngineProcess.load(
            config, progress, RestartPolicy(max_restarts=0), is_wanted=is_wanted
        )
        folder = process.tokenizer_folder
        if previous is not None:
            tokenizer, old_hash = previous.tokenizer, previous.model.weights_hash
            if tokenizer.path.parent == folder and old_hash == process.model.weights_hash:
                return cls(process, tokenizer)
        try:
            return cls(process, Tokenizer.from_folder(folder))
        except BaseException:
            process.join(0.0)
            raise

    @property
    def model(self) -> ModelInfo:
        return self._runner.model

    @property
    def media_processor(self) -> "MediaProcessor | None":
        """What prepares the images and audio of prompts; None for a model that takes text alone.
        `shutdown` closes it."""
        token_ids = self.model.media_token_ids
        if self._media_processor is None and token_ids:
            from stonechat_models.media.processor import MediaProcessor

            self._media_processor = MediaProcessor(self.tokenizer.path.parent, token_ids)
        return self._media_processor

    @property
    def is_alive(self) -> bool:
        return self._runner.is_alive

    @property
    def failure(self) -> BaseException | None:
        """Why the engine stopped, if it has failed."""
        return self._runner.failure

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._runner.start(self._deliver)

    async def shutdown(self) -> None:
        """Stop after the current step. Requests still running end with `EngineDeadError`."""
        if self._media_processor is not None:
            self._media_processor.close()
        self._runner.send(Stop())
        await asyncio.to_thread(self._runner.join, 30.0)
        self._fail_streams("the engine was shut down")

    def stats(self) -> EngineStats:
        return self._runner.stats()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]:
        """Yield a request's outputs up to the last, which has `finished` set.

        Closing the iterator early aborts the request. Before the first output this raises
        `PromptTooLongError`, `InvalidParamsError`, `GrammarError` or `EngineDeadError`, and a plain
        `EngineError` if the grammar compiler fails. Later it raises `EngineDeadError` if the engine
        stops.
        """
        self._check(request)
        prediction = request.prediction_token_ids
        if prediction and self._token_outside_model(prediction) is not None:
            request = replace(request, prediction_token_ids=())  # no answer can repeat it
        stream = _Stream(OutputProcessor(self.tokenizer, request))
        self._streams[request.request_id] = stream
        is_finished = False
        try:
            self._runner.send(Add(request))
            if not self._runner.is_alive:  # it may have died after the check
                self._fail_streams("the engine is not running")
            while not is_finished:
                output = await stream.take()
                is_finished = output.finished
                if stream.processor.prompt_logprobs is not None:
                    add = stream.processor.add_prompt_logprobs
                    output = await asyncio.to_thread(add, output)
                yield output
        except EngineError:
            is_finished = True
            raise
        finally:
            self._streams.pop(request.request_id, None)
            if not is_finished:
                self._runner.send(Abort(request.request_id))

    def end_choice(self, request_id: str, index: int) -> None:
        """End one choice of a running request: it gets no more output. Unknown ids are ignored.

        The request's last output is that of its other choices. If all have ended, close the
        iterator.
        """
        stream = self._streams.get(request_id)
        if stream is not None and stream.processor.end_choice(index):
            self._runner.send(Abort(request_id, index))

    def _check(self, request: GenerateRequest) -> None:
        if not self._runner.is_alive:
            raise EngineDeadError("the engine is not running")
        if request.request_id in self._streams:
            raise InvalidParamsError("request_id", "a request with this id is running")
        if request.adapter or request.embedding is not None or not self.model.generates:
            self._check_kind(request)
        num_prompt_tokens = len(request.prompt_token_ids)
        if num_prompt_tokens == 0:
            raise InvalidParamsError("messages", "the prompt has no tokens")
        if request.embedding is not None:
            limit = self.model.max_model_len
            if num_prompt_tokens > limit:
                problem = f"a text has {num_prompt_tokens} tokens of at most {limit}"
                raise InvalidParamsError("input", problem)
        elif num_prompt_tokens + (request.params.max_tokens != 0) > self.model.max_model_len:
            raise PromptTooLongError(num_prompt_tokens, self.model.max_model_len)
        text: Sequence[int] = request.prompt_token_ids
        if request.media and request.speech is None:
            from stonechat_models.engine.prompts.media import check_media, text_tokens

            check_media(request, self.model)
            text = text_tokens(request)
        if request.params.prompt_logprobs is not None:
            self._check_prompt_logprobs(num_prompt_tokens)
        vocab_size = self.model.vocab_size
        outside = self._token_outside_model(text)
        if outside is not None:
            raise InvalidParamsError(
                "messages",
                f"the prompt has the token {self.tokenizer.token_text(outside)!r} (id {outside}), "
                f"for which the model has no embedding: it has {vocab_size}",
            )
        for token_id in request.params.logit_bias:
            if not 0 <= token_id < vocab_size:
                raise InvalidParamsError(
                    "logit_bias",
                    f"token id {token_id} is outside the vocabulary of size {vocab_size}",
                )

    def _check_prompt_logprobs(self, num_prompt_tokens: int) -> None:
        """Refuse a prompt that needs one step, and whose logits are too large for one."""
        limit = self.model.max_prompt_rows + 1  # the first token needs no logits
        if num_prompt_tokens > limit and not self.model.exact_chunks:
            raise InvalidParamsError(
                "prompt_logprobs",
                "this model computes a prompt in one piece, and prompt_logprobs is then for at "
                f"most {limit} tokens, not {num_prompt_tokens}",
            )

    def _check_kind(self, request: GenerateRequest) -> None:
        """Refuse what the model does not do: to generate, or to make embeddings, scores or
        transcripts."""
        if request.adapter and request.adapter not in [a.name for a in self.model.adapters]:
            raise InvalidParamsError("model", f"there is no adapter {request.adapter}")
        params, info = request.embedding, self.model.embedding
        if params is None:
            if not self.model.generates and (request.speech is None or self.model.speech is None):
                raise InvalidParamsError("model", "this model does not generate")
            return
        if self.model.ranking is not None:
            return
        if info is None:
            raise InvalidParamsError("model", "this model is not served for embeddings")
        if params.dimensions is not None and not 1 <= params.dimensions <= info.size:
            raise InvalidParamsError("dimensions", f"dimensions must be between 1 and {info.size}")

    def _token_outside_model(self, token_ids: Sequence[int]) -> int | None:
        """Return a token for which the model has no embedding; None if there is none."""
        if self.tokenizer.vocab_size <= self.model.vocab_size or not token_ids:
            return None
        highest = max(token_ids)
        return highest if highest >= self.model.vocab_size else None

    # --- from the runner's thread to the event loop ---

    def _deliver(self, report: Report) -> None:
        assert self._loop is not None
        self._reports.append(report)
        if self._is_waking:  # the loop takes this report with those before it
            return
        self._is_waking = True
        try:
            self._loop.call_soon_threadsafe(self._on_reports)
        except RuntimeError:  # the loop is closed: nobody is left to read
            self._is_waking = False
            self._reports.clear()
            logger.debug("a report was discarded: the event loop is closed")

    def _on_reports(self) -> None:
        """Take all waiting reports. If the loop is behind, several steps are processed as one."""
        self._is_waking = False  # first: a report that comes now wakes the loop again
        outputs: list[TokenOutput] = []
        while self._reports:
            report = self._reports.popleft()
            if isinstance(report, StepOutputs):
                outputs += report.outputs
                continue
            self._on_step(outputs)
            outputs = []
            if isinstance(report, Died):
                self._fail_streams(report.reason)
            elif (stream := self._streams.get(report.request_id)) is not None:
                stream.put(report.error)
        self._on_step(outputs)

    def _on_step(self, outputs: Sequence[TokenOutput]) -> None:
        by_request: defaultdict[str, list[TokenOutput]] = defaultdict(list)
        for output in outputs:
            by_request[output.request_id].append(output)
        for request_id, outputs_of_request in by_request.items():
            stream = self._streams.get(request_id)
            if stream is None:  # closed meanwhile; its abort is on the way
                continue
            try:
                stream.put(stream.processor.process(outputs_of_request))
            except Exception:
                logger.exception("the output of request %s cannot be processed", request_id)
                stream.put(EngineDeadError("the output cannot be processed"))
                self._runner.send(Abort(request_id))
                continue
            while stream.processor.stopped_choices:
                self._runner.send(Abort(request_id, stream.processor.stopped_choices.pop(0)))

    def _fail_streams(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.put(EngineDeadError(reason))
        self._streams.clear()


def _wants_process(config: EngineConfig) -> bool:
    """True if the engine gets its own process. By default only on CUDA: steps are short there, and
    the interpreter lock would delay them."""
    if config.engine_process is not None:
        return config.engine_process
    if config.tensor_parallel > 1:
        return True
    name = config.device_name
    if name.startswith("cuda") or (name == "auto" and sees_gpu()):
        return True  # without importing torch: the process does that
    from stonechat_models.hardware.device import find_device

    return find_device(name).type == "cuda"
