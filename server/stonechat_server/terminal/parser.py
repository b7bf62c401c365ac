"""An `argparse` parser whose errors come first, in plain words, with the nearest right word."""

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from stonechat_server.terminal.other_flags import what_stands_for
from stonechat_server.terminal.suggest import did_you_mean

PLAIN_TEXTS = {
    r"argument (.*?): expected one argument": r"\1 needs a value",
    r"argument (.*?): expected at least one argument": r"\1 needs a value",
    r"argument (.*?): ignored explicit argument (.*)": r"\1 takes no value, but has \2",
    r"argument (.*?): (.*)": r"\1: \2",
    r"the following arguments are required: (.*)": r"\1 is missing",
}
"""Messages of `argparse`, and what is said instead."""
BEHIND_HELP = r"argument -h/--help: ignored explicit argument '(.*)'"
"""What `argparse` says of a flag that begins with `-h`, such as `-hf`."""


class _HelpFormatter(argparse.HelpFormatter):
    """Keeps flags and words with hyphens in one line."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = textwrap.wrap(" ".join(text.split()), width - len(indent), break_on_hyphens=False)
        return "\n".join(indent + line for line in lines)


class Parser(argparse.ArgumentParser):
    """Splits a command line. It accepts no shortened flags."""

    def __init__(self, prog: str, description: str | None = None, **options: Any) -> None:
        super().__init__(prog, description=description, allow_abbrev=False,
                         formatter_class=_HelpFormatter, **options)  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Exit with the message first, and where the help is."""
        if match := re.fullmatch(BEHIND_HELP, message):
            message = self._explain_flag(f"-h{match[1]}", ())
        for pattern, text in PLAIN_TEXTS.items():
            if match := re.fullmatch(pattern, message, re.DOTALL):
                message = match.expand(text)
                break
        self.exit(2, f"{self.prog}: {message}\n`{self.prog} --help` shows what it accepts.\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words. Exits with a message for those that are left over."""
        if any(action.nargs == "*" for action in self._get_positional_actions()):
            parsed, rest = self.parse_known_intermixed_args(args, namespace)
        else:
            parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self._explain_rest(rest, args or ()))
        return parsed

    def _explain_rest(self, rest: Sequence[str], words: Sequence[str]) -> str:
        word = next((word for word in rest if word.startswith("-")), rest[0])
        if not word.startswith("-"):
            url_flag = next((flag for flag in self._flags(words) if flag.endswith("url")), None)
            hint = f"; did you mean {url_flag} {word}?" if url_flag and "://" in word else ""
            return f"there is one word too many: {word}{hint}"
        return self._explain_flag(word.partition("=")[0], words)

    def _explain_flag(self, flag: str, words: Sequence[str]) -> str:
        """Say that there is no such flag, and which one was meant."""
        positionals = [action for action in self._actions if not action.option_strings]
        for action in positionals:
            if action.dest == flag.lstrip("-"):
                return f"there is no flag {flag}: give {action.metavar} without it"
        flags = sorted(set(self._flags(words)))
        known = {*flags, *(str(action.metavar) for action in positionals)}
        return f"there is no flag {flag}{what_stands_for(flag, known) or did_you_mean(flag, flags)}"

    def _flags(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the flags of this parser, and of the action that the words name."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for name, parser in action.choices.items():
                    if name in words:
                        yield from parser._flags(words)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse an unknown action. `argparse` calls this for every word with choices."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        hint = did_you_mean(str(value), names) or f"; there are {', '.join(names)}"
        self.error(f"there is no action {value}{hint}")
