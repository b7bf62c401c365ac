"""Runs Whisper on windows of 30 seconds. Transformers' own `generate` writes each window's tokens.

A window whose text repeats itself or is unlikely is written again at higher temperatures, and one
that has no speech is left out, as the model's makers do it. A window is heard without the text of
the windows before it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from stonechat_models.backends.base import Heard, Window
from stonechat_models.backends.transformers.speech.alignment import token_times
from stonechat_models.backends.transformers.speech.segments import (
    FRAME_STEP,
    FRAMES_PER_TIME,
    Part,
    compression_ratio,
    split_at_times,
    words_of,
)
from stonechat_models.errors import StepError
from stonechat_models.model_info import ModelInfo
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.transcript import SpeechParams, SpeechSegment, SpeechWord

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried in order, if the request leaves the temperature at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a window is written again, and when it is silent: the numbers of the model's makers."""

    compression_ratio: float = 2.4
    avg_logprob: float = -1.0
    no_speech_prob: float = 0.6


@dataclass(frozen=True, slots=True)
class _Written:
    """The tokens of a window, without the end token."""

    prompt_ids: Sequence[int]
    token_ids: list[int]
    text_ids: tuple[int, ...]
    text: str
    temperature: float
    avg_logprob: float
    is_cut: bool


class WhisperTranscriber:
    """A loaded Whisper; a `SpeechModel`."""

    def __init__(
        self, module: Any, tokenizer: Tokenizer, info: ModelInfo, device: torch.device
    ) -> None:
        self.info = info
        self.window_frames = FRAMES_PER_TIME * int(module.config.max_source_positions)
        self.thresholds = Thresholds()
        self._module = module
        self._tokenizer = tokenizer
        self._device = device
        config = module.generation_config
        self._end_id = int(config.eos_token_id)
        self._first_time = int(config.no_timestamps_token_id) + 1
        assert info.speech is not None, "the model transcribes speech"
        self._language_ids: dict[int, str] = {
            config.lang_to_id[f"<|{code}|>"]: code for code in info.speech.languages
        }

    @torch.inference_mode()
    def hear(self, windows: Sequence[Window]) -> list[Heard | StepError]:
        encoded = self._encode(windows)
        languages = self._languages(windows, encoded)
        prompt = list(windows[0].request.prompt_token_ids)
        silent_id = self._first_time - 2  # <|nospeech|>, before <|notimestamps|>
        no_speech = self._logits(encoded, prompt).softmax(dim=-1)[:, silent_id].tolist()
        written = self._write_all(windows, encoded, languages, no_speech)
        return [
            StepError("the model computed a number that is not finite")
            if not math.isfinite(one.avg_logprob + no_speech[i])
            else self._heard(window, one, languages[i], no_speech[i], encoded[i : i + 1])
            for i, (window, one) in enumerate(zip(windows, written, strict=True))
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

    def _logits(self, encoded: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
        """Return what follows tokens, float32[N, V]."""
        ids = torch.tensor([token_ids], device=self._device).expand(len(encoded), -1)
        outputs = self._module(encoder_outputs=(encoded,), decoder_input_ids=ids, use_cache=False)
        logits: torch.Tensor = outputs.logits[:, -1].float()
        return logits

    def _languages(self, windows: Sequence[Window], encoded: torch.Tensor) -> list[str]:
        languages = [window.language for window in windows]
        if not self._language_ids or all(languages):
            return languages
        start = windows[0].request.prompt_token_ids[-1]
        ids = torch.tensor(list(self._language_ids), device=self._device)
        likeliest = ids[self._logits(encoded, [start])[:, ids].argmax(dim=-1)].tolist()
        return [
            language or self._language_ids[token_id]
            for language, token_id in zip(languages, likeliest, strict=True)
        ]

    def _write_all(
        self,
        windows: Sequence[Window],
        encoded: torch.Tensor,
        languages: Sequence[str],
        no_speech: Sequence[float],
    ) -> list[_Written]:
        """Write each window until its text is good. What is drawn is drawn for each alone."""
        written: dict[int, _Written] = {}
        asked = [window.request.params.temperature for window in windows]
        greedy = [i for i, temperature in enumerate(asked) if temperature == 0]
        if greedy:
            together = self._write(
                [windows[i] for i in greedy], encoded[greedy], [languages[i] for i in greedy], 0.0
            )
            written.update(zip(greedy, together, strict=True))
        for i, window in enumerate(windows):
            for temperature in TEMPERATURES[1:] if i in written else (asked[i],):
                if i in written and self._is_good(written[i], no_speech[i]):
                    break
                (written[i],) = self._write(
                    [window], encoded[i : i + 1], languages[i : i + 1], temperature
                )
        return [written[i] for i in range(len(windows))]

    def _is_good(self, written: _Written, no_speech: float) -> bool:
        """Whether a text stays. That of a silent window does, which is left out."""
        limits = self.thresholds
        if self._is_silent(written, no_speech):
            return True
        repeats = compression_ratio(written.text) > limits.compression_ratio
        return not (repeats or written.avg_logprob < limits.avg_logprob)

    def _is_silent(self, written: _Written, no_speech: float) -> bool:
        limits = self.thresholds
        is_unlikely = written.avg_logprob < limits.avg_logprob
        return is_unlikely and no_speech > limits.no_speech_prob

    def _write(
        self,
        windows: Sequence[Window],
        encoded: torch.Tensor,
        languages: Sequence[str],
        temperature: float,
    ) -> list[_Written]:
        first = windows[0]
        params, prompt = first.request.params, first.request.prompt_token_ids[:-1]
        options: dict[str, Any] = {}
        if self._language_ids:
            options = {"language": list(languages), "task": _speech(first).task}
        if prompt:
            options["prompt_ids"] = torch.tensor(prompt, device=self._device)
        if temperature:
            options |= {"top_p": params.top_p, "top_k": 0}
        room = self.info.max_model_len - len(prompt) - (3 if self._language_ids else 1)
        if first.max_tokens is not None:
            room = min(room, first.max_tokens)
        sums = _LogprobSums(self._end_id)
        with self._seeded(None if params.seed is None else params.seed + first.start):
            outputs = self._module.generate(
                encoder_outputs=BaseModelOutput(encoded),
                attention_mask=encoded.new_ones(encoded.shape[:2], dtype=torch.long),
                return_timestamps=True,
                force_unique_generate_call=True,
                temperature=temperature,
                num_beams=1,
                max_length=room,  # it is counted behind the prompt
                logits_processor=LogitsProcessorList([sums]),
                **options,
            )
        sums.add(outputs[:, -1])
        prompts = outputs[:, : sums.num_prompt_tokens].tolist()
        rows = outputs[:, sums.num_prompt_tokens :].tolist()
        return [
            self._written(*row, temperature, is_limited=room == first.max_tokens)
            for row in zip(prompts, rows, sums.sums.tolist(), strict=True)
        ]

    @contextmanager
    def _seeded(self, seed: int | None) -> Iterator[None]:
        """Draw from a seed, if there is one, and leave the generator as it was."""
        if seed is None:
            yield
            return
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed % 2**63)
            yield

    def _written(
        self,
        prompt_ids: list[int],
        row: list[int],
        logprob: float,
        temperature: float,
        *,
        is_limited: bool,
    ) -> _Written:
        is_ended = self._end_id in row
        token_ids = row[: row.index(self._end_id)] if is_ended else row
        text_ids = tuple([token_id for token_id in token_ids if token_id < self._end_id])
        return _Written(
            prompt_ids,
            token_ids,
            text_ids,
            self._tokenizer.decode(text_ids),
            temperature,
            logprob / max(1, len(token_ids) + is_ended),
            is_limited and not is_ended,
        )

    def _heard(
        self,
        window: Window,
        written: _Written,
        language: str,
        no_speech: float,
        encoded: torch.Tensor,
    ) -> Heard:
        num_frames = window.features.shape[1]
        if self._is_silent(written, no_speech) or not written.token_ids:
            return Heard(language, (), (), num_frames, is_cut=written.is_cut)
        parts, next_start = split_at_times(written.token_ids, self._first_time, num_frames)
        words: list[tuple[SpeechWord, ...]] = [()] * len(parts)
        if _speech(window).with_words:
            words = self._words(window, written, parts, language, encoded)
        ratio, offset, length = compression_ratio(written.text), window.start, num_frames
        segments = [
            SpeechSegment(
                seek=offset,
                start=(offset + min(part.start * FRAMES_PER_TIME, length)) * FRAME_STEP,
                end=(offset + min(part.end * FRAMES_PER_TIME, length)) * FRAME_STEP,
                text=self._tokenizer.decode(self._text_ids(written, part)),
                token_ids=tuple(written.token_ids[part.first : part.last]),
                temperature=written.temperature,
                avg_logprob=written.avg_logprob,
                compression_ratio=ratio,
                no_speech_prob=no_speech,
                words=words[i],
            )
            for i, part in enumerate(parts)
        ]
        segments = [segment for segment in segments if segment.text.strip()]
        text_ids = [i for s in segments for i in s.token_ids if i < self._end_id]
        return Heard(language, segments, tuple(text_ids), next_start, is_cut=written.is_cut)

    def _text_ids(self, written: _Written, part: Part) -> list[int]:
        token_ids = written.token_ids[part.first : part.last]
        return [token_id for token_id in token_ids if token_id < self._end_id]

    def _words(
        self,
        window: Window,
        written: _Written,
        parts: Sequence[Part],
        language: str,
        encoded: torch.Tensor,
    ) -> list[tuple[SpeechWord, ...]]:
        """Return the words of each segment."""
        num_frames, offset = window.features.shape[1], window.start * FRAME_STEP
        ids = (written.prompt_ids, written.token_ids)
        ends = token_times(self._module, encoded, *ids, num_frames)
        starts = [offset, *(offset + end for end in ends)]
        words = []
        for part in parts:
            places = [i for i in range(*part[:2]) if written.token_ids[i] < self._end_id]
            times = [starts[i] for i in places] + [starts[places[-1] + 1] if places else 0.0]
            text_ids = self._text_ids(written, part)
            words.append(words_of(text_ids, times, self._tokenizer, language))
        return words


class _LogprobSums(LogitsProcessor):  # type: ignore[misc]
    """Sums the log-probabilities of the tokens that `generate` chooses, up to the end token.

    The logits are kept for one step only: those of a window would take 90 MB.
    """

    def __init__(self, end_id: int) -> None:
        self._end_id = end_id
        self._logprobs: torch.Tensor | None = None
        self._has_ended = torch.zeros(0, dtype=torch.bool)
        self.num_prompt_tokens = 0
        self.sums = torch.zeros(0)
        """float32[N]"""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._logprobs is None:
            self.num_prompt_tokens = input_ids.shape[1]
            self.sums = torch.zeros(len(scores), device=scores.device)
            self._has_ended = torch.zeros_like(self.sums, dtype=torch.bool)
        else:
            self.add(input_ids[:, -1])
        self._logprobs = scores.float().log_softmax(dim=-1)
        return scores

    def add(self, token_ids: torch.Tensor) -> None:
        """Add those of the tokens that were chosen last, int64[N]."""
        assert self._logprobs is not None
        chosen = self._logprobs.gather(1, token_ids[:, None])[:, 0]
        self.sums += chosen.masked_fill(self._has_ended, 0.0)
        self._has_ended |= token_ids == self._end_id


def _speech(window: Window) -> SpeechParams:
    assert window.request.speech is not None
    return window.request.speech
