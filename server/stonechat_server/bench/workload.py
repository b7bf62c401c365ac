"""Where prompts come from: made up to a token length, a file of prompts, or ShareGPT-style JSON."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

Message = Mapping[str, object]

CHARS_PER_TOKEN = 4
"""Used only to guess a length for a ShareGPT answer when `--output-tokens` is not given."""

# Common English words: one token each, with the space before it, in most vocabularies.
WORDS = """
stone river mountain bread water summer winter window garden morning evening paper music
letter number picture city village road bridge station train market school teacher student doctor
farmer captain soldier artist writer reader sister brother mother father friend neighbor child
table chair door floor kitchen bottle glass iron silver gold wood cotton leather sugar salt
apple orange lemon horse cattle sheep bird fish tree flower grass forest island ocean
coast valley desert storm wind cloud rain snow fire smoke light shadow color green blue
yellow black white heavy empty narrow simple strong gentle quiet early late often never
always perhaps almost under over between across behind before after until while because
write read speak listen carry build break open close begin finish follow answer question
remember forget travel visit return arrive leave stand walk run swim climb measure count
""".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to send. `max_tokens` None: as `--output-tokens` says."""

    messages: Sequence[Message]
    max_tokens: int | None = None


class Workload(Protocol):
    """An endless source of prompts: the same index gives the same prompt."""

    def prompt(self, index: int) -> Prompt:
        """The prompt of request `index`, counted over the whole run."""


@dataclass(frozen=True, slots=True)
class SyntheticWorkload:
    """Random words, `num_words` of them, of which the first `prefix_share` are common to all.

    Two prompts differ from the first word after the common prefix, so that a prefix cache helps
    with that prefix and with nothing else.
    """

    num_words: int
    prefix_share: float
    seed: int

    def prompt(self, index: int) -> Prompt:
        num_common = round(self.num_words * self.prefix_share)
        common = random.Random(f"{self.seed}/prefix").choices(WORDS, k=num_common)
        own = random.Random(f"{self.seed}/{index}").choices(WORDS, k=self.num_words - num_common)
        return Prompt([{"role": "user", "content": " ".join(common + own)}])


@dataclass(frozen=True, slots=True)
class ListWorkload:
    """Given prompts, in an order that the seed decides, from the start again when they run out."""

    prompts: Sequence[Prompt]
    seed: int

    def prompt(self, index: int) -> Prompt:
        cycle, place = divmod(index, len(self.prompts))
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/{cycle}").shuffle(order)
        return self.prompts[order[place]]


class _Line(msgspec.Struct):
    prompt: str | None = None
    messages: list[dict[str, object]] | None = None
    max_tokens: int | None = None


def read_prompts_file(path: Path) -> list[Prompt]:
    """Read prompts: plain text, one a line; or JSON Lines (`.jsonl`) with `prompt` or `messages`
    and, if wanted, `max_tokens`.

    Raises ValueError, naming the line, when one cannot be used.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no prompts")
    if path.suffix != ".jsonl":
        return [Prompt([{"role": "user", "content": line}]) for line in lines]
    return [_json_prompt(path, number, line) for number, line in enumerate(lines, start=1)]


def _json_prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        parsed = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}, prompt {number}: {error}") from error
    if parsed.messages:
        return Prompt(parsed.messages, parsed.max_tokens)
    if parsed.prompt:
        return Prompt([{"role": "user", "content": parsed.prompt}], parsed.max_tokens)
    raise ValueError(f"{path}, prompt {number}: neither `prompt` nor `messages`")


class _Turn(msgspec.Struct):
    source: str = msgspec.field(name="from")
    value: str = ""


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []


def read_sharegpt(path: Path) -> list[Prompt]:
    """Read ShareGPT-style JSON: the first human turn of each conversation is the prompt, and the
    answer's length, guessed at four characters a token, its `max_tokens`.

    Raises ValueError when the file holds no such pair.
    """
    try:
        conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not ShareGPT-style JSON: {error}") from error
    prompts = []
    for conversation in conversations:
        for turn, answer in zip(conversation.conversations, conversation.conversations[1:]):
            if turn.source in ("human", "user") and turn.value.strip():
                max_tokens = max(1, len(answer.value) // CHARS_PER_TOKEN)
                prompts.append(Prompt([{"role": "user", "content": turn.value}], max_tokens))
                break
    if not prompts:
        raise ValueError(f"{path} holds no conversation that starts with a human turn")
    return prompts
