"""List, fetch, remove and rename the models on this machine."""

import argparse
import sys
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stonechat_models import EngineConfig, ModelLoadError
from stonechat_server.commands.sizes import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="models and aliases on this machine")
    pull = actions.add_parser("pull", help="download a model, going on where it stopped before")
    pull.add_argument(
        "model", metavar="MODEL", help="Hugging Face id, owner/name/file.gguf, or default"
    )
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.add_argument("--allow-pickle", action="store_true", help="take pickled weights too")
    remove = actions.add_parser("rm", help="delete a model and what was converted from it")
    remove.add_argument("model", metavar="MODEL", nargs="+")
    alias = actions.add_parser("alias", help="let a short name stand for a model")
    alias.add_argument("name", metavar="NAME")
    alias.add_argument("model", metavar="MODEL", nargs="?", help="left out: forget the alias")


def run(arguments: argparse.Namespace) -> int:
    """Do the action; 1 when it cannot be done."""
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
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _list(console: Console) -> int:
    from stonechat_models import list_models, read_aliases

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for model in list_models():
        used = datetime.fromtimestamp(model.last_used, UTC).strftime("%Y-%m-%d")
        table.add_row(model.name, format_bytes(model.num_bytes), used)
    for name, target in sorted(read_aliases().items()):
        table.add_row(f"{name} = {target}", "alias", "")
    if table.row_count:
        console.print(table)
    else:
        console.print("no models yet; `stonechat models pull default` fetches a small one")
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
        print(f"{name} is gone: {format_bytes(remove_model(name))} are free again")
    return 0


def _alias(name: str, model: str | None) -> int:
    from stonechat_models import set_alias

    set_alias(name, model)
    print(f"{name} stands for {model}" if model is not None else f"{name} is forgotten")
    return 0
