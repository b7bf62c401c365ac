"""Sources of prompts: random words of a given length, a file, or ShareGPT-style JSON."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from stonechat_server.client.synthetic_images import image_part, png

Message = Mapping[str, object]

CHARS_PER_TOKEN = 4
"""Used only to estimate the length of a ShareGPT answer in tokens."""

# Common English words. In most vocabularies each is one token with the space before it.
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
    """One request to send. If `max_tokens` is None, `--output-tokens` applies."""

    messages: Sequence[Message]
    max_tokens: int | None = None
    num_images: int = 0


class Workload(Protocol):
    """An endless source of prompts. The same index returns the same prompt."""

    def prompt(self, index: int) -> Prompt:
        """The prompt of request `index`, counted over the whole run."""


@dataclass(frozen=True, slots=True)
class ImageLoad:
    """Images in front of the words of each prompt: new ones for each, or the same ones."""

    number: int
    width: int
    height: int
    are_same: bool

    def parts(self, seed: int, index: int) -> list[Mapping[str, object]]:
        """The parts of the message of prompt `index`."""
        seeds = (f"{seed}/{'' if self.are_same else index}/{at}" for at in range(self.number))
        return [image_part(png(self.width, self.height, image_seed)) for image_seed in seeds]


@dataclass(frozen=True, slots=True)
class SyntheticWorkload:
    """Prompts of `num_words` random words, of which a share of `prefix_share` is a common prefix.

    The words after the prefix are drawn for each prompt, so a prefix cache helps with the prefix
    only. `images` stand in front of them.
    """

    num_words: int
    prefix_share: float
    seed: int
    max_tokens: int | None = None
    images: ImageLoad | None = None

    def prompt(self, index: int) -> Prompt:
        num_common = round(self.num_words * self.prefix_share)
        common = random.Random(f"{self.seed}/prefix").choices(WORDS, k=num_common)
        rest = random.Random(f"{self.seed}/{index}").choices(WORDS, k=self.num_words - num_common)
        content: object = " ".join(common + rest)
        if self.images is not None:
            content = [*self.images.parts(self.seed, index), {"type": "text", "text": content}]
        num_images = 0 if self.images is None else self.images.number
        return Prompt([{"role": "user", "content": content}], self.max_tokens, num_images)


@dataclass(frozen=True, slots=True)
class ListWorkload:
    """A list of prompts without end: each pass over the list has an order that the seed decides."""

    prompts: Sequence[Prompt]
    seed: int

    def prompt(self, index: int) -> Prompt:
        cycle, position = divmod(index, len(self.prompts))
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/{cycle}").shuffle(order)
        return self.prompts[order[position]]


class _Line(msgspec.Struct):
    prompt: str | None = None
    messages: list[dict[str, object]] | None = None
    max_tokens: int | None = None


def read_text(path: Path) -> str:
    """The text of a file. Raises ValueError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8") from error


def read_prompts_file(path: Path) -> list[Prompt]:
    """Read a file of prompts: plain text with one prompt per line, or JSON Lines (`.jsonl`).

    A JSON object has `prompt` or `messages`, and optionally `max_tokens`. Raises ValueError with
    the number of the prompt that is invalid.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no prompts")
    if path.suffix != ".jsonl":
        return [Prompt([{"role": "user", "content": line}]) for line in lines]
    return [_json_prompt(path, number, line) for number, line in enumerate(lines, start=1)]


def _json_prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        fields = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}, prompt {number}: {error}") from error
    if fields.messages:
        return Prompt(fields.messages, fields.max_tokens)
    if fields.prompt:
        return Prompt([{"role": "user", "content": fields.prompt}], fields.max_tokens)
    raise ValueError(f"{path}, prompt {number}: has neither `prompt` nor `messages`")


class _Turn(msgspec.Struct):
    source: str = msgspec.field(name="from")
    value: str = ""


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []


def read_sharegpt(path: Path) -> list[Prompt]:
    """Read ShareGPT-style JSON. The first human turn of each conversation is a prompt.

    Its `max_tokens` is the length of the turn after it, estimated at four characters per token.
    Raises ValueError if the file has no such pair of turns.
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
        raise ValueError(f"{path} has no conversation with an answered human turn")
    return prompts
