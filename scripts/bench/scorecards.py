"""Check our server and others with the same model, and put the table into docs/check.md.

Each `--peer` is NAME=COMMAND, in which {model} and {port} stand for the file and a free port. The
servers run one after the other. With `--keep FOLDER` their findings stay there, and only servers
without findings are started. Example:

    python scripts/bench/scorecards.py model.gguf \
        --peer "llama.cpp=llama-server --jinja -np 4 -c 16384 -m {model} --port {port}"
"""

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from servers import STONECHAT, free_port, started

from stonechat_server.scorecard.command import Options, examine
from stonechat_server.scorecard.outcome import Finding, Verdict
from stonechat_server.scorecard.report import Scorecard, as_json, markdown

PAGE = Path(__file__).parents[2] / "docs" / "check.md"
START, END = "<!-- scorecards: written by scripts/bench/scorecards.py -->", "<!-- /scorecards -->"
TIMEOUT = 600.0
"""Seconds for an answer, also on a machine that does other work."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--log", type=Path, default=Path("scorecards.log"))
    parser.add_argument("--keep", type=Path, help="folder for findings")
    arguments = parser.parse_args()
    ours = [*STONECHAT, "serve", "{model}", "--port", "{port}"]
    commands = {"Stonechat": [*ours, "--ledger", "off"]}
    for peer in arguments.peer:
        name, _, command = peer.partition("=")
        commands[name] = shlex.split(command)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, command in commands.items():
            kept = folder / f"{name}.json"
            if not kept.exists():
                kept.write_text(as_json([card_of(name, command, arguments.model, arguments.log)]))
            print(name, "is checked", flush=True)
        write(markdown([read_card(folder / f"{name}.json") for name in commands]))
    return 0


def card_of(name: str, command: Sequence[str], model: Path, log: Path) -> Scorecard:
    """Start a server, check it, and stop it."""
    port = free_port()
    words = [word.format(model=model, port=port) for word in command]
    with started(words, port, path="/v1/models", log=log) as server:
        return asyncio.run(examine(name, server.url, Options(timeout=TIMEOUT, at_once=1)))


def read_card(path: Path) -> Scorecard:
    (server,) = json.loads(path.read_text())["servers"]
    findings = [Finding(Verdict(one["verdict"]), one["detail"]) for one in server["checks"]]
    return Scorecard(server["label"], server["base_url"], server["model"], findings)


def write(card: str) -> None:
    """Replace the part of the page between the marks. Models and addresses are left out."""
    lines = [line.partition("** (")[0] + "**:" if line.startswith("**") else line
             for line in card.splitlines()]  # fmt: skip
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{START}\n\n" + "\n".join(lines) + f"\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
