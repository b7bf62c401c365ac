"""Makes a plain text completion of the chunks of its stream."""

from dataclasses import dataclass, field
from math import fsum, inf

from msgspec import UNSET

from stonechat_server.completions_api.answer import Completion, CompletionChoice, CompletionLogprobs
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.schema.responses import Usage
from stonechat_server.streaming.answer_writer import CompletionHead


@dataclass(slots=True)
class _CollectedChoice:
    """A choice that is made from its chunks; `whole` lacks its text until the end."""

    whole: CompletionChoice
    texts: list[str] = field(default_factory=list)
    num_prompt_logprobs: int = 0
    """How many of the log-probabilities are those of the prompt."""

    def add(self, choice: CompletionChoice) -> None:
        whole = self.whole
        self.texts.append(choice.text)
        if choice.logprobs is not None:
            whole.logprobs = whole.logprobs or CompletionLogprobs()
            whole.logprobs.extend(choice.logprobs)
        if choice.prompt_logprobs is not UNSET:
            whole.prompt_logprobs = choice.prompt_logprobs
        if choice.prompt_token_ids is not UNSET:
            whole.prompt_token_ids = choice.prompt_token_ids
        if choice.token_ids is not UNSET:
            if whole.token_ids is UNSET:
                whole.token_ids = []
            whole.token_ids += choice.token_ids
        whole.finish_reason = choice.finish_reason or whole.finish_reason

    def mean_logprob(self) -> float:
        """That of the generated tokens. A choice without tokens comes last."""
        logprobs = self.whole.logprobs
        generated = logprobs.token_logprobs[self.num_prompt_logprobs :] if logprobs else []
        values = [value for value in generated if value is not None]
        return fsum(values) / len(values) if values else -inf

    def body(self, index: int, *, has_logprobs: bool) -> CompletionChoice:
        assert self.whole.finish_reason is not None, "the stream ended before the choice did"
        self.whole.text, self.whole.index = "".join(self.texts), index
        if not has_logprobs:
            self.whole.logprobs = None
        return self.whole


class CompletionCollector:
    """Collects the chunks of one request. They must include the usage."""

    def __init__(self, head: CompletionHead, request: CompletionRequest) -> None:
        self._head = head
        self._request = request
        self._choices: dict[int, _CollectedChoice] = {}
        self._usage: Usage | None = None

    def add(self, event: Completion) -> None:
        for choice in event.choices:
            known = self._choices.get(choice.index)
            if known is None:
                whole = CompletionChoice(text="", index=choice.index)
                known = self._choices[choice.index] = _CollectedChoice(whole)
                if self._request.echo and choice.logprobs is not None:
                    known.num_prompt_logprobs = len(choice.logprobs.tokens)
            known.add(choice)
        self._usage = event.usage or self._usage

    def answer(self) -> Completion:
        assert self._usage is not None, "the stream ended without its usage"
        head, metadata = self._head, self._request.metadata
        has_logprobs = self._request.logprobs is not None
        return Completion(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=[
                choice.body(index, has_logprobs=has_logprobs)
                for index, choice in enumerate(self._chosen())
            ],
            system_fingerprint=head.system_fingerprint,
            service_tier=head.service_tier,
            usage=self._usage,
            metadata=UNSET if metadata is None else metadata,
        )

    def _chosen(self) -> list[_CollectedChoice]:
        """All choices in order; with `best_of`, the likeliest of each prompt."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        num_samples, num_choices = self._request.num_samples, self._request.num_choices
        if num_samples == num_choices:
            return choices
        chosen = []
        for start in range(0, len(choices), num_samples):
            of_prompt = choices[start : start + num_samples]
            of_prompt.sort(key=_CollectedChoice.mean_logprob, reverse=True)
            chosen += of_prompt[:num_choices]
        return chosen
