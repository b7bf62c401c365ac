"""A conversation and its settings, and the commands that change them."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_server.commands.chat.api import Message
from stonechat_server.commands.chat.media import (
    MediaError,
    Part,
    file_part,
    modality_of,
    names_file,
    read_media,
    shown_content,
)
from stonechat_server.media.file_types import is_pdf
from stonechat_server.options import UserError
from stonechat_server.schema.fields import FIELDS
from stonechat_server.terminal.suggest import did_you_mean

if TYPE_CHECKING:
    from stonechat_models import Modality

HELP = """\
/help             show this help
/system [TEXT]    set the system prompt; without TEXT, remove it
/set NAME VALUE   set a request field: /set temperature 0.2, /set stop ["END"]
/unset NAME       use the server's default again; without NAME, list what is set
/settings         show model, system prompt and fields
/history          show the conversation
/undo             forget the last question and its answer
/retry            ask the last question again
/clear            forget the conversation; settings stay
/file PATH        put a text file or a PDF file in front of the next message
/image FILE …     the same with images (PNG, JPEG, WebP, GIF); without FILE,
                  forget those that wait
/audio FILE …     the same with audio (WAV, MP3, FLAC, Ogg)
/save PATH        save conversation and settings as JSON
/load PATH        load a saved conversation and its settings
/models           list the server's models, with their states
/model NAME       talk to another model; the next question may load it
/quit             leave (also Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ continues on the next line.
Pasted lines are one question."""
OWN_FIELDS = {
    "model": "/model NAME chooses the model",
    "messages": "the messages are the conversation",
    "stream": "the chat always streams",
    "stream_options": "the chat always streams",
}
"""Fields that the chat itself sends, and what to know instead."""


class CommandError(UserError):
    """A command failed; the message says why."""


@dataclass(slots=True)
class Session:
    """A conversation, its model and its request fields.

    `knows_all_fields`: the server has no request fields but those of Stonechat. After a command,
    `wants_answer` requests an answer, and `wants_models` the list of models.
    """

    model: str
    system: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Message] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    media: list[Part] = field(default_factory=list)
    """The images, the audio and the PDF files that wait for the next message."""
    knows_all_fields: bool = True
    wants_answer: bool = False
    wants_models: bool = False
    is_over: bool = False

    @property
    def messages(self) -> list[Message]:
        """The messages of a request: the system prompt, if any, and the turns."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def ask(self, text: str) -> None:
        """Add a question, with the attached media and the texts of the files in front of it."""
        content: Any = "\n\n".join([*self.attached, text])
        if self.media:
            content = [*self.media, {"type": "text", "text": content}]
        self.turns.append({"role": "user", "content": content})
        self.attached, self.media = [], []

    def answer(self, text: str) -> None:
        """Add the answer to the last question."""
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Remove the last question if it has no answer."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def is_command(self, line: str) -> bool:
        """Whether the text is a command. A pasted text that begins like a path is none."""
        if not line.startswith("/"):
            return False
        return "\n" not in line or line[1:].partition("\n")[0].split(" ")[0] in self._actions()

    def command(self, line: str) -> str:
        """Run a line that starts with `/`; returns the text to show. Raises `CommandError`."""
        self.wants_answer = self.wants_models = False
        name, _, rest = line[1:].strip().partition(" ")
        action = self._actions().get(name)
        if action is None and names_file(line):  # dropped into the terminal
            return self._dropped(line)
        if action is None:
            hint = did_you_mean("/" + name, [f"/{known}" for known in self._actions()])
            raise CommandError(f"there is no command /{name}{hint or '; /help lists the commands'}")
        return action(rest.strip())

    def _actions(self) -> dict[str, Callable[[str], str]]:
        return {
            "help": lambda _: HELP,
            "system": self._system,
            "set": self._set,
            "unset": self._unset,
            "settings": lambda _: self._describe(),
            "history": lambda _: self._history(),
            "undo": lambda _: self._undo(),
            "retry": lambda _: self._retry(),
            "clear": lambda _: self._clear(),
            "file": self._file,
            "image": partial(self._attach, "image"),
            "audio": partial(self._attach, "audio"),
            "save": self._save,
            "load": self._load,
            "models": lambda _: self._models(),
            "model": self._model,
            "quit": lambda _: self._quit(),
            "exit": lambda _: self._quit(),
        }

    def _system(self, text: str) -> str:
        self.system = text
        return "system prompt set" if text else "system prompt removed"

    def _set(self, rest: str) -> str:
        name, _, text = rest.partition(" ")
        if not name or not text.strip():
            raise CommandError("usage: /set NAME VALUE, such as /set temperature 0.2")
        note = self.check_field(name)
        self.settings[name] = _value(text.strip())
        return "\n".join(filter(None, [self._shown(name), note]))

    def check_field(self, name: str) -> str:
        """What to know of a request field that the server may not have; empty if there is nothing.

        Raises `CommandError` for one that it does not have, and for one that the chat sends.
        """
        if name in OWN_FIELDS:
            raise CommandError(f"{name} cannot be set: {OWN_FIELDS[name]}")
        if name in FIELDS:
            return ""
        problem = f"there is no request field {name}{did_you_mean(name, FIELDS)}"
        if self.knows_all_fields:
            raise CommandError(problem)
        return f"Stonechat knows no field {name}; it is sent, in case this server knows it"

    def _unset(self, name: str) -> str:
        if not name:
            shown = [self._shown(field) for field in self.settings]
            return "\n".join(shown) or "no field is set: the server's defaults apply"
        if name not in self.settings:
            raise CommandError(f"{name} is not set{did_you_mean(name, self.settings)}")
        del self.settings[name]
        return f"{name} is unset: the server's default applies"

    def _shown(self, name: str) -> str:
        return f"{name} = {json.dumps(self.settings[name], ensure_ascii=False)}"

    def _describe(self) -> str:
        fields = [self._shown(name) for name in self.settings]
        return "\n".join([f"model: {self.model}", f"system: {self.system or '(none)'}", *fields])

    def _history(self) -> str:
        lines = [f"{turn['role']}: {shown_content(turn['content'])}" for turn in self.messages]
        return "\n\n".join(lines) or "the conversation is empty"

    def _undo(self) -> str:
        if not self.turns:
            raise CommandError("the conversation is empty")
        while self.turns and self.turns.pop()["role"] != "user":
            pass
        return f"{len(self.turns)} messages are left"

    def _retry(self) -> str:
        while self.turns and self.turns[-1]["role"] != "user":
            self.turns.pop()
        if not self.turns:
            raise CommandError("there is no question to ask again")
        self.wants_answer = True
        return ""

    def _clear(self) -> str:
        self.turns.clear()
        self.attached.clear()
        self.media.clear()
        return "the conversation is empty now; settings stay"

    def _file(self, rest: str) -> str:
        path = _path(rest)
        try:
            data = path.read_bytes()
            if is_pdf(data):
                self.media.append(file_part(path.name, data))
            else:
                self.attached.append(data.decode().replace("\r\n", "\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read {path}: {_reason(error)}") from error
        return f"{path.name} goes in front of your next message"

    def attached_of(self, modality: "Modality") -> list[Part]:
        """The images, or the audio, that wait for the next message."""
        return [part for part in self.media if modality_of(part) == modality]

    def forget(self, modality: "Modality") -> None:
        """Let no image, or no audio, wait for the next message."""
        self.media = [part for part in self.media if modality_of(part) != modality]

    def _attach(self, modality: "Modality", rest: str) -> str:
        if not rest and not self.attached_of(modality):
            raise CommandError(f"usage: /{modality} FILE, in quotes if the path contains spaces")
        if not rest:
            self.forget(modality)
            return f"no {modality} goes in front of your next message"
        try:
            parts, names = read_media(rest, modality)
        except MediaError as error:
            raise CommandError(str(error)) from error
        self.media += parts
        return f"in front of your next message: {names}"

    def _dropped(self, line: str) -> str:
        """Attach files that were dropped into the terminal: audio, or else images."""
        try:
            return self._attach("audio", line)
        except CommandError:
            return self._attach("image", line)

    def _save(self, rest: str) -> str:
        path = _path(rest)
        document = {"model": self.model, "settings": self.settings, "messages": self.messages}
        try:
            path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"cannot write {path}: {_reason(error)}") from error
        return f"saved to {path}"

    def _load(self, rest: str) -> str:
        path = _path(rest)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            messages, settings = list(document["messages"]), dict(document["settings"])
            is_system = bool(messages) and messages[0].get("role") == "system"
        except OSError as error:
            raise CommandError(f"cannot read {path}: {_reason(error)}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"{path} is not a file that /save has written") from error
        for name in settings:
            self.check_field(name)
        self.system = str(messages.pop(0).get("content", "")) if is_system else ""
        self.turns, self.settings = messages, settings
        return f"{len(messages)} messages loaded"

    def _models(self) -> str:
        self.wants_models = True
        return ""

    def _model(self, name: str) -> str:
        if not name:
            raise CommandError("usage: /model NAME")
        self.model = name
        return f"talking to {name}"

    def _quit(self) -> str:
        self.is_over = True
        return ""


def _value(text: str) -> Any:
    """The value that the text has as JSON; if it is not JSON, the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not a text file in UTF-8"
    return (error.strerror or str(error)).lower()


def _path(rest: str) -> Path:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if len(words) != 1:
        raise CommandError(
            "one path is expected, such as /save chat.json, in quotes if it contains spaces"
        )
    return Path(words[0]).expanduser()
