"""A conversation and its settings, and the commands that change them."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stonechat_server.commands.chat.api import Message

HELP = """\
/help                 this
/system [TEXT]        set the system prompt; without TEXT, remove it
/set NAME VALUE       set a request field: /set temperature 0.2, /set stop ["END"]
/unset NAME           back to the server's default
/settings             show model, system prompt and fields
/history              show the conversation
/undo                 forget the last question and its answer
/retry                ask the last question again
/clear                forget the conversation; settings stay
/file PATH            put a text file in front of the next message
/save PATH            write conversation and settings as JSON
/load PATH            read them back
/models               the server's models
/model NAME           talk to another one
/quit                 leave (also Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one."""


class CommandError(Exception):
    """A command cannot be done; the message says why."""


@dataclass(slots=True)
class Session:
    """What is said, to whom, and how. `wants_answer`: the last command asks for one."""

    model: str
    system: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Message] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    wants_answer: bool = False
    wants_models: bool = False
    is_over: bool = False

    @property
    def messages(self) -> list[Message]:
        """What a request carries."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def ask(self, text: str) -> None:
        """Add a question, with the files attached to it."""
        self.turns.append({"role": "user", "content": "\n\n".join([*self.attached, text])})
        self.attached = []

    def answer(self, text: str) -> None:
        """Add the answer to the last question."""
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Forget a question that got no answer."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def command(self, line: str) -> str:
        """Do a line that starts with `/`; what to show. Raises `CommandError`."""
        self.wants_answer = self.wants_models = False
        name, _, rest = line[1:].strip().partition(" ")
        action = self._actions().get(name)
        if action is None:
            raise CommandError(f"there is no command /{name}; /help lists them")
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
            "save": self._save,
            "load": self._load,
            "models": lambda _: self._models(),
            "model": self._model,
            "quit": lambda _: self._quit(),
            "exit": lambda _: self._quit(),
        }

    def _system(self, text: str) -> str:
        self.system = text
        return "system prompt set" if text else "no system prompt"

    def _set(self, rest: str) -> str:
        name, _, text = rest.partition(" ")
        if not name or not text.strip():
            raise CommandError("it is /set NAME VALUE")
        self.settings[name] = _value(text.strip())
        return f"{name} = {json.dumps(self.settings[name], ensure_ascii=False)}"

    def _unset(self, name: str) -> str:
        if name not in self.settings:
            raise CommandError(f"{name or 'nothing'} is not set")
        del self.settings[name]
        return f"{name} is the server's default"

    def _describe(self) -> str:
        fields = [f"{name} = {json.dumps(value)}" for name, value in self.settings.items()]
        return "\n".join([f"model: {self.model}", f"system: {self.system or '(none)'}", *fields])

    def _history(self) -> str:
        lines = [f"{turn['role']}: {turn['content']}" for turn in self.messages]
        return "\n\n".join(lines) or "nothing was said"

    def _undo(self) -> str:
        if not self.turns:
            raise CommandError("nothing was said")
        while self.turns and self.turns.pop()["role"] != "user":
            pass
        return f"{len(self.turns)} messages are left"

    def _retry(self) -> str:
        while self.turns and self.turns[-1]["role"] != "user":
            self.turns.pop()
        if not self.turns:
            raise CommandError("nothing was asked")
        self.wants_answer = True
        return ""

    def _clear(self) -> str:
        self.turns.clear()
        self.attached.clear()
        return "a new conversation"

    def _file(self, rest: str) -> str:
        path = _path(rest)
        try:
            self.attached.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read {path}: {error}") from error
        return f"{path.name} goes in front of your next message"

    def _save(self, rest: str) -> str:
        path = _path(rest)
        whole = {"model": self.model, "settings": self.settings, "messages": self.messages}
        try:
            path.write_text(json.dumps(whole, indent=2, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error}") from error
        return f"saved to {path}"

    def _load(self, rest: str) -> str:
        path = _path(rest)
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            messages, settings = list(whole["messages"]), dict(whole["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CommandError(f"cannot read {path}: {error}") from error
        self.system = ""
        if messages and messages[0].get("role") == "system":
            self.system = str(messages.pop(0).get("content", ""))
        self.turns, self.settings = messages, settings
        return f"{len(messages)} messages loaded"

    def _models(self) -> str:
        self.wants_models = True
        return ""

    def _model(self, name: str) -> str:
        if not name:
            raise CommandError("it is /model NAME")
        self.model = name
        return f"talking to {name}"

    def _quit(self) -> str:
        self.is_over = True
        return ""


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _path(rest: str) -> Path:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if len(words) != 1:
        raise CommandError("one path is wanted")
    return Path(words[0]).expanduser()
