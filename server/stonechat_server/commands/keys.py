"""Add, list and revoke API keys. A running server reads the changed file within a second."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from stonechat_server.options import BaseOptions, UserError, option, split
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only
from stonechat_server.terminal.tables import new_console, new_table


class Add(BaseOptions):
    """Create a key and print it once."""

    name: str = option(..., "name of the key in the file and in the usage", flag="NAME")
    models: Annotated[tuple[str, ...], BeforeValidator(split)] = option(
        (), "models that the key may use, comma-separated (default: all)"
    )
    requests_per_minute: int | None = option(None, "most requests per minute", metavar="N", ge=1)
    tokens_per_minute: int | None = option(None, "most tokens per minute", metavar="N", ge=1)
    max_concurrency: int | None = option(
        None, "requests that may run at the same time", metavar="N", ge=1
    )
    priority: int = option(0, "a key with a lower number goes first", metavar="N")
    manages_models: bool = option(False, "let the key load and unload models")

    def run(self, path: Path) -> None:
        from stonechat_server.access.keys_file import add_key, default_keys_file

        print(add_key(path, **self.model_dump()))
        print(f"Added {self.name} to {path}; the key is not shown again.", file=sys.stderr)
        if path == default_keys_file():
            print("`stonechat serve` asks for it, also where it runs already.", file=sys.stderr)
        else:
            command = f"stonechat serve --keys-file {shlex.quote(str(path))}"
            print(f"`{command}` asks for it.", file=sys.stderr)


class List(BaseOptions):
    """List the keys with their limits; also without an action."""

    def run(self, path: Path) -> None:
        from stonechat_server.access.keys import is_there, read_keys
        from stonechat_server.access.keys_file import default_keys_file

        is_new = path == default_keys_file() and not is_there(path)
        keys = () if is_new else read_keys(path)
        if not keys:
            print(f"no keys in {path} yet; `stonechat keys add NAME` makes one")
            return
        headings = ("name", "state", "requests/min", "tokens/min", "concurrency", "priority",
                    "models", "manages")  # fmt: skip
        rows = [
            (
                key.name,
                "revoked" if key.revoked else "live",
                _limit(key.requests_per_minute),
                _limit(key.tokens_per_minute),
                _limit(key.max_concurrency),
                str(key.priority),
                ",".join(key.models) or "all",
                "yes" if key.manages_models else "-",
            )
            for key in keys
        ]
        new_console().print(new_table(headings, rows, num_left=2))


class Revoke(BaseOptions):
    """Revoke a key: it is refused from now on."""

    name: str = option(..., "name of the key", flag="NAME")

    def run(self, path: Path) -> None:
        from stonechat_server.access.keys_file import revoke_key

        revoke_key(path, self.name)
        print(f"Revoked {self.name} in {path}.", file=sys.stderr)


class Options(BaseOptions):
    """The options of `stonechat keys`."""

    settings: Annotated[Settings, Only("keys_file")]
    action: Add | List | Revoke


def run(options: Options) -> int:
    """Run the action. Raises `KeysFileError`."""
    from stonechat_server.access.keys_file import OFF, default_keys_file

    path = options.settings.keys_file or default_keys_file()
    if str(path) == OFF:
        raise UserError("the keys file is off; name one with --keys-file FILE")
    options.action.run(path.expanduser())
    return 0


def _limit(value: int | None) -> str:
    return "-" if value is None else str(value)
