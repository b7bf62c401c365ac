"""The engine of a model that transcribes speech: each step is one window of one or more clips.

The clips take turns: a short one does not wait for the end of a long one, and an aborted one costs
no more than the window that is being computed.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import Heard, SpeechModel, Window
from stonechat_models.engine.batch_engine import BatchEngine, ended
from stonechat_models.errors import StepError
from stonechat_models.transcript import SpeechParams, SpeechSegment, Transcript
from stonechat_models.types import FinishReason, GenerateRequest, TokenOutput

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Clip:
    """How far a clip is transcribed."""

    request: GenerateRequest
    features: npt.NDArray[np.float32]
    """[bands, frames], of the whole clip."""
    language: str
    start: int = 0
    """How many frames are done."""
    num_tokens: int = 0
    segments: list[SpeechSegment] = field(default_factory=list)

    @property
    def num_left(self) -> int | None:
        """How many tokens may follow; None: no limit."""
        limit = self.request.params.max_tokens
        return None if limit is None else limit - self.num_tokens


class SpeechEngine(BatchEngine[SpeechModel]):
    """Transcribes the clips of many requests in turn, window by window."""

    def __init__(self, model: SpeechModel) -> None:
        super().__init__(model)
        self._clips: dict[str, _Clip] = {}

    def abort(self, request_id: str, index: int | None = None) -> None:
        super().abort(request_id, index)
        self._clips.pop(request_id, None)

    def _next_batch(self) -> list[GenerateRequest]:
        """Choose the request that waits longest for its turn, and others that fit beside it.

        What is computed together has the same prompt, task and limit.
        """
        waiting = sorted(self._waiting.values(), key=lambda request: request.priority)
        batch = [r for r in waiting if _kind(r) == _kind(waiting[0])]
        batch = batch[: self.model.info.max_num_seqs]
        for request in batch:  # to the end of the line
            self._waiting[request.request_id] = self._waiting.pop(request.request_id)
            if request.request_id not in self._clips:
                self.num_prompt_tokens += len(request.prompt_token_ids)
                self._clips[request.request_id] = _new_clip(request)
        return batch

    def _compute(self, batch: list[GenerateRequest], scheduled: float) -> list[TokenOutput]:
        clips = [self._clips[request.request_id] for request in batch]
        heard = self.model.hear([self._window(clip) for clip in clips])
        return [self._finish(*pair, scheduled) for pair in zip(clips, heard, strict=True)]

    def _window(self, clip: _Clip) -> Window:
        end = clip.start + self.model.window_frames
        return Window(
            clip.request,
            clip.features[:, clip.start : end],
            clip.start,
            clip.language,
            clip.num_left,
        )

    def _finish(self, clip: _Clip, heard: Heard | StepError, scheduled: float) -> TokenOutput:
        """Return the output of a window. It alone fails if it has numbers that are not finite."""
        request = clip.request
        if isinstance(heard, StepError):
            logger.error("request %s failed: %s", request.request_id, heard)
            return ended(request, scheduled, error=str(heard))
        clip.language = heard.language
        clip.start += heard.num_frames
        clip.segments += heard.segments
        clip.num_tokens += len(heard.token_ids)
        reason: FinishReason | None = None
        if heard.is_cut or clip.num_left == 0:
            reason = FinishReason.LENGTH
        elif clip.start >= clip.features.shape[1]:
            reason = FinishReason.STOP
        return TokenOutput(
            request_id=request.request_id,
            index=0,
            token_ids=heard.token_ids,
            logprobs=None,
            finish_reason=reason,
            num_cached_tokens=0,
            scheduled_time=scheduled,
            transcript=Transcript(clip.language, tuple(clip.segments)) if reason else None,
        )


def _new_clip(request: GenerateRequest) -> _Clip:
    tensor = request.media[0].tensors["input_features"]
    features = np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
    return _Clip(request, features, _speech(request).language)


def _kind(request: GenerateRequest) -> tuple[object, ...]:
    """What is the same for all windows of a batch."""
    limit = request.params.max_tokens
    alone = request.request_id if limit is not None else ""
    return tuple(request.prompt_token_ids), _speech(request).task, alone


def _speech(request: GenerateRequest) -> SpeechParams:
    assert request.speech is not None, "the model transcribes speech"
    return request.speech
