"""How families of models are asked for a transcript, and how they write it.

The prompts are those that the processors of transformers and the models' cards have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from stonechat_models import Transcript
from stonechat_server.schema.messages import (
    AssistantMessage,
    AudioPart,
    Message,
    SystemMessage,
    TextPart,
    UserMessage,
)
from stonechat_server.transcriptions_api.languages import code_of, name_of

Task = Literal["transcribe", "translate"]
MARKER = "<asr_text>"
MAX_TAG = 100
"""Characters before the marker. Text that is longer has no tag."""
VOXTRAL_TEMPLATE = (
    "{{ bos_token }}[INST][BEGIN_AUDIO][AUDIO][/INST]"
    "{% if language %}lang:{{ language }}{% endif %}[TRANSCRIBE]"
)


class TextReader:
    """Reads the text of an answer, which is the transcript."""

    language = ""
    """What the model says of it, if it says it."""
    transcript: Transcript | None = None
    """Of a model that gives timestamps: all that it says."""

    def add(self, text: str) -> str:
        """Return what the next piece adds to the transcript."""
        return text

    def end(self) -> str:
        """Return what is left at the end."""
        return ""


class TaggedReader(TextReader):
    """Reads `language English<asr_text>`, and behind it the transcript."""

    def __init__(self) -> None:
        self._held: str | None = ""
        """What may be the tag; None once it is read."""

    def add(self, text: str) -> str:
        if self._held is None:
            return text
        self._held += text
        tag, marker, rest = self._held.partition(MARKER)
        if not marker:
            return "" if len(self._held) <= MAX_TAG else self.end()
        self._held = None
        name = tag.strip().removeprefix("language ").strip()
        self.language = "" if name == "None" else name
        return rest

    def end(self) -> str:
        held, self._held = self._held or "", None
        return held


@dataclass(frozen=True, slots=True)
class Speech:
    """What is asked of a clip."""

    task: Task
    language: str = ""
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One way to ask."""

    messages: Callable[[Speech, AudioPart], list[Message]]
    takes: frozenset[str] = frozenset()
    """Which of `language` and `prompt` have an effect."""
    translates: bool = False
    names_language: bool = False
    """Whether the answer begins with the language, unless the prompt has it."""
    template: str | None = None
    """In place of the chat template."""


def _user(*parts: AudioPart | str) -> UserMessage:
    content = [TextPart(type="text", text=p) if isinstance(p, str) else p for p in parts]
    return UserMessage.model_construct(role="user", content=content)


def _instruction(speech: Speech, part: AudioPart) -> list[Message]:
    if speech.task == "translate":
        text = "Translate the speech in this audio into English. Answer with the translation alone."
    else:
        language = f", which is in {name_of(speech.language)}" if speech.language else ""
        text = f"Transcribe the speech in this audio{language}. Answer with the transcript alone."
    if speech.prompt:
        text += f"\nThese names and words may occur: {speech.prompt}"
    return [_user(part, text)]


def _qwen3_asr(speech: Speech, part: AudioPart) -> list[Message]:
    messages: list[Message] = [_user(part)]
    if speech.prompt:
        messages.insert(0, SystemMessage(role="system", content=speech.prompt))
    if speech.language:
        begun = f"language {name_of(speech.language)}{MARKER}"
        messages.append(AssistantMessage(role="assistant", content=begun))
    return messages


INSTRUCTION = Family(_instruction, frozenset({"language", "prompt"}), translates=True)
FAMILIES: Mapping[str, Family] = {
    "AudioFlamingo3ForConditionalGeneration": Family(
        lambda _, part: [_user("Transcribe the input speech.", part)]
    ),
    "GlmAsrForConditionalGeneration": Family(
        lambda _, part: [_user(part, "Please transcribe this audio into text")]
    ),
    "Qwen3ASRForConditionalGeneration": Family(
        _qwen3_asr, frozenset({"language", "prompt"}), names_language=True
    ),
    "VoxtralForConditionalGeneration": Family(
        lambda _, part: [_user(part)], frozenset({"language"}), template=VOXTRAL_TEMPLATE
    ),
}
"""By the architecture of the model. All others get an instruction."""


def family_of(architecture: str) -> Family:
    """How a model of this architecture is asked."""
    return FAMILIES.get(architecture, INSTRUCTION)


def variables_of(speech: Speech) -> dict[str, str]:
    """What a family's own template reads."""
    return {"language": code_of(speech.language)}
