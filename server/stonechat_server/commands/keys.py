"""Add, list and revoke API keys. A running server reads the changed file within a second."""

import argparse
import os
import sys
from pathlib import Path

VARIABLE = "STONECHAT_KEYS_FILE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions `add NAME`, `list` and `revoke NAME`, and their flags."""
    parser.add_argument(
        "--keys-file",
        type=Path,
        default=os.environ.get(VARIABLE),
        metavar="FILE",
        help=f"TOML file with the API keys (environment: {VARIABLE})",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="create a key and print it once")
    add.add_argument("name", metavar="NAME")
    add.add_argument(
        "--models", default="", help="models that the key may use, comma-separated (default: all)"
    )
    add.add_argument("--requests-per-minute", type=int, metavar="N")
    add.add_argument("--tokens-per-minute", type=int, metavar="N")
    add.add_argument(
        "--max-concurrency", type=int, metavar="N", help="requests that may run at the same time"
    )
    add.add_argument(
        "--priority", type=int, default=0, metavar="N", help="a key with a lower number goes first"
    )
    actions.add_parser("list", help="list the keys with their limits")
    revoke = actions.add_parser("revoke", help="revoke a key: it is refused from now on")
    revoke.add_argument("name", metavar="NAME")


def run(arguments: argparse.Namespace) -> int:
    """Run the action. Returns 1 if no keys file is named, or if the action fails."""
    from stonechat_server.access.keys import KeysFileError

    if arguments.keys_file is None:
        print(
            f"stonechat keys: no keys file: give --keys-file FILE or set {VARIABLE}",
            file=sys.stderr,
        )
        return 1
    path = Path(arguments.keys_file)
    try:
        if arguments.action == "add":
            _add(path, arguments)
        elif arguments.action == "revoke":
            _revoke(path, arguments.name)
        else:
            _list(path)
    except (KeysFileError, OSError) as error:
        print(f"stonechat keys: {error}", file=sys.stderr)
        return 1
    return 0


def _add(path: Path, arguments: argparse.Namespace) -> None:
    from stonechat_server.access.keys_file import add_key

    secret = add_key(
        path,
        arguments.name,
        models=tuple(part.strip() for part in arguments.models.split(",") if part.strip()),
        requests_per_minute=arguments.requests_per_minute,
        tokens_per_minute=arguments.tokens_per_minute,
        max_concurrency=arguments.max_concurrency,
        priority=arguments.priority,
    )
    print(secret)
    print(f"Added {arguments.name} to {path}; the key is not shown again.", file=sys.stderr)


def _revoke(path: Path, name: str) -> None:
    from stonechat_server.access.keys_file import revoke_key

    revoke_key(path, name)
    print(f"Revoked {name} in {path}.", file=sys.stderr)


def _list(path: Path) -> None:
    from stonechat_server.access.keys import read_keys
    from stonechat_server.commands.text_table import text_table

    headings = ("name", "state", "requests/min", "tokens/min", "concurrency", "priority", "models")
    rows = [
        (
            key.name,
            "revoked" if key.revoked else "live",
            _limit(key.requests_per_minute),
            _limit(key.tokens_per_minute),
            _limit(key.max_concurrency),
            str(key.priority),
            ",".join(key.models) or "all",
        )
        for key in read_keys(path)
    ]
    print(text_table(headings, rows, num_left=2))


def _limit(value: int | None) -> str:
    return "-" if value is None else str(value)
