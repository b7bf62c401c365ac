"""List, download and delete the models on this machine, and give them aliases."""

import argparse
import sys
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stonechat_models import EngineConfig, ModelLoadError
from stonechat_server.commands.sizes import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="list the models and aliases on this machine")
    pull = actions.add_parser("pull", help="download a model, or resume its download")
    pull.add_argument(
        "model", metavar="MODEL", help="Hugging Face id, owner/name/file.gguf, or default"
    )
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.add_argument("--allow-pickle", action="store_true", help="also accept pickled weights")
    remove = actions.add_parser("rm", help="delete a model and all files converted from it")
    remove.add_argument("model", metavar="MODEL", nargs="+")
    alias = actions.add_parser("alias", help="give a model a short name")
    alias.add_argument("name", metavar="NAME")
    alias.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="the model that NAME stands for; without it, the alias is removed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the action. Returns 1 if it fails, 130 if it is interrupted."""
    try:
        if arguments.action == "list":
            return _list(Console())
        if arguments.action == "pull":
            return _pull(arguments)
        if arguments.action == "rm":
            return _remove(arguments.model)
        return _alias(arguments.name, arguments.model)
    except (ModelLoadError, OSError) as error:
        print(f"stonechat models: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130


def _list(console: Console) -> int:
    from stonechat_models import list_models, read_aliases

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for model in list_models():
        last_used = datetime.fromtimestamp(model.last_used, UTC).strftime("%Y-%m-%d")
        table.add_row(model.name, format_bytes(model.num_bytes), last_used)
    for name, target in sorted(read_aliases().items()):
        table.add_row(f"{name} = {target}", "alias", "")
    if table.row_count:
        console.print(table)
    else:
        console.print("no models yet; `stonechat models pull default` downloads a small one")
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    from stonechat_models import fetch_model

    config = EngineConfig(
        model=arguments.model, revision=arguments.revision, allow_pickle=arguments.allow_pickle
    )
    folder = fetch_model(config, lambda line: print(line, file=sys.stderr))
    print(f"{arguments.model} is ready ({folder})")
    return 0


def _remove(names: list[str]) -> int:
    from stonechat_models import remove_model

    for name in names:
        print(f"{name} removed; {format_bytes(remove_model(name))} freed")
    return 0


def _alias(name: str, model: str | None) -> int:
    from stonechat_models import set_alias

    set_alias(name, model)
    print(f"{name} stands for {model}" if model is not None else f"{name} is no longer an alias")
    return 0
