"""Runs Whisper on windows of 30 seconds.

A window whose text repeats itself or is unlikely is written again at higher temperatures, and one
that has no speech is left out, as the model's makers do it. A window is heard without the text of
the windows before it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stonechat_models.backends.base import Heard, Window
from stonechat_models.backends.transformers.speech.alignment import token_times
from stonechat_models.backends.transformers.speech.segments import (
    FRAMES_PER_SECOND,
    FRAMES_PER_TIME,
    TimedToken,
    compression_ratio,
    split_at_times,
    words_of,
)
from stonechat_models.backends.transformers.speech.writing import Written, speech_of, write
from stonechat_models.errors import StepError
from stonechat_models.model_info import ModelInfo
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.transcript import SpeechSegment

HIGHER_TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried in order behind 0, if the request leaves the temperature at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a window is written again, and when it is silent: the numbers of the model's makers."""

    compression_ratio: float = 2.4
    avg_logprob: float = -1.0
    no_speech_prob: float = 0.6


class WhisperTranscriber:
    """A loaded Whisper; a `SpeechModel`."""

    def __init__(
        self, module: Any, tokenizer: Tokenizer, info: ModelInfo, device: torch.device
    ) -> None:
        assert info.speech is not None, "the model transcribes speech"
        self.info = info
        self.window_frames = FRAMES_PER_TIME * int(module.config.max_source_positions)
        self.thresholds = Thresholds()
        self._module = module
        self._tokenizer = tokenizer
        self._device = device
        config = module.generation_config
        self._end_id = int(config.eos_token_id)
        self._first_time = int(config.no_timestamps_token_id) + 1
        self._language_ids = [config.lang_to_id[f"<|{code}|>"] for code in info.speech.languages]

    @torch.inference_mode()
    def hear(self, windows: Sequence[Window]) -> list[Heard | StepError]:
        encoded = self._encode(windows)
        languages = self._languages(windows, encoded)
        prompt = windows[0].request.prompt_token_ids
        silent_id = self._first_time - 2  # <|nospeech|>, before <|notimestamps|>
        no_speech = self._logits(encoded, prompt).softmax(dim=-1)[:, silent_id].tolist()
        written = self._write(windows, encoded, languages, no_speech)
        return [
            self._heard(window, written[i], languages[i], no_speech[i], encoded[i : i + 1])
            for i, window in enumerate(windows)
        ]

    def _encode(self, windows: Sequence[Window]) -> torch.Tensor:
        """Return the states of windows, [N, positions, size]. Short ones are filled up with 0."""
        bands = windows[0].features.shape[0]
        features = torch.zeros(len(windows), bands, self.window_frames)
        for row, window in zip(features, windows, strict=True):
            row[:, : window.features.shape[1]] = torch.tensor(window.features)
        features = features.to(self._device, self._module.dtype)
        states: torch.Tensor = self._module.model.encoder(features).last_hidden_state
        return states

    def _logits(self, encoded: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
        """Return what follows tokens, float32[N, V]."""
        ids = torch.tensor([token_ids], device=self._device).expand(len(encoded), -1)
        outputs = self._module(encoder_outputs=(encoded,), decoder_input_ids=ids, use_cache=False)
        logits: torch.Tensor = outputs.logits[:, -1].float()
        return logits

    def _languages(self, windows: Sequence[Window], encoded: torch.Tensor) -> list[str]:
        languages = [window.language for window in windows]
        if not self._language_ids or all(languages):
            return languages
        assert self.info.speech is not None
        start = windows[0].request.prompt_token_ids[-1:]
        likeliest = self._logits(encoded, start)[:, self._language_ids].argmax(dim=-1).tolist()
        return [
            language or self.info.speech.languages[index]
            for language, index in zip(languages, likeliest, strict=True)
        ]

    def _write(
        self,
        windows: Sequence[Window],
        encoded: torch.Tensor,
        languages: Sequence[str],
        no_speech: Sequence[float],
    ) -> list[Written]:
        """Write each window until its text is good. What is drawn is drawn for each alone."""
        written: dict[int, Written] = {}

        def write_some(rows: list[int], temperature: float) -> None:
            chosen, spoken = [windows[i] for i in rows], [languages[i] for i in rows]
            texts = write(self._module, chosen, encoded[rows], spoken, temperature)
            written.update(zip(rows, texts, strict=True))

        asked = [window.request.params.temperature for window in windows]
        if greedy := [i for i, temperature in enumerate(asked) if temperature == 0]:
            write_some(greedy, 0.0)
        for i, wanted in enumerate(asked):
            if wanted:
                write_some([i], wanted)
                continue
            for temperature in HIGHER_TEMPERATURES:
                if self._is_good(written[i], no_speech[i]):
                    break
                write_some([i], temperature)
        return [written[i] for i in range(len(windows))]

    def _is_good(self, written: Written, no_speech: float) -> bool:
        """Whether a text stays. That of a silent window does, which is left out."""
        if self._is_silent(written, no_speech):
            return True
        repeats = compression_ratio(self._text(written.token_ids))
        is_unlikely = written.avg_logprob < self.thresholds.avg_logprob
        return not is_unlikely and repeats <= self.thresholds.compression_ratio

    def _is_silent(self, written: Written, no_speech: float) -> bool:
        is_unlikely = written.avg_logprob < self.thresholds.avg_logprob
        return is_unlikely and no_speech > self.thresholds.no_speech_prob

    def _text(self, token_ids: Iterable[int]) -> str:
        """Return the text of tokens, without times."""
        return self._tokenizer.decode([i for i in token_ids if i < self._end_id])

    def _heard(
        self,
        window: Window,
        written: Written,
        language: str,
        no_speech: float,
        encoded: torch.Tensor,
    ) -> Heard | StepError:
        if not math.isfinite(written.avg_logprob + no_speech):
            return StepError("the model computed a number that is not finite")
        token_ids, num_frames = written.token_ids, window.features.shape[1]
        if self._is_silent(written, no_speech) or not token_ids:
            return Heard(language, (), (), num_frames, is_cut=written.is_cut)
        timed: list[TimedToken] = []
        if speech_of(window).with_words:
            ends = token_times(self._module, encoded, written.prompt_ids, token_ids, num_frames)
            times = [(window.start + end) / FRAMES_PER_SECOND for end in (0, *ends)]
            timed = [*map(TimedToken, token_ids, times, times[1:])]
        parts, next_start = split_at_times(token_ids, self._first_time, num_frames)
        repeats, segments = compression_ratio(self._text(token_ids)), []
        for part in parts:
            text = self._text(token_ids[part.first : part.last])
            if not text.strip():
                continue
            start, end = (min(t * FRAMES_PER_TIME, num_frames) for t in (part.start, part.end))
            tokens = [one for one in timed[part.first : part.last] if one.token_id < self._end_id]
            segments.append(
                SpeechSegment(
                    seek=window.start,
                    start=(window.start + start) / FRAMES_PER_SECOND,
                    end=(window.start + end) / FRAMES_PER_SECOND,
                    text=text,
                    token_ids=tuple(token_ids[part.first : part.last]),
                    temperature=written.temperature,
                    avg_logprob=written.avg_logprob,
                    compression_ratio=repeats,
                    no_speech_prob=no_speech,
                    words=words_of(tokens, self._tokenizer, language),
                )
            )
        text_ids = [i for s in segments for i in s.token_ids if i < self._end_id]
        return Heard(language, segments, tuple(text_ids), next_start, is_cut=written.is_cut)
