"""Compare our server on the CPU with `llama-server` binaries, in turn, and print Markdown tables.

Each load runs on a freshly started server, and all servers get the same prompts, decoded greedily.
Every answer is checked to have the tokens that were asked for. The whole comparison takes a while:
`--models`, `--servers` and `--rows` run a part of it, and `--json` collects the parts. Example:

    PYTHONPATH=server:models python scripts/bench/cpu_peers.py --json peers.json \\
        --model '1B Q4_K_M=1b.gguf' --peer 'llama.cpp=llama.cpp/build/bin/llama-server' \\
        --peer 'ik_llama.cpp=ik_llama.cpp/build/bin/llama-server -rtr'

Prints shares of the peak too, which is measured in each run. Linux only: memory is read from /proc.
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec
from peak import Peak, measure_peak
from peer_models import ModelCost, model_cost
from peer_rows import ROWS, Measurement, figures_of, quick
from peer_table import tables
from servers import STONECHAT, free_port, started

from stonechat_models import cpu_name
from stonechat_models.hardware.cpus import usable_cpus
from stonechat_server.bench.targets.target import BenchError


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A server to compare. `command` starts a `llama-server`, or has further options of ours."""

    name: str
    kind: Literal["ours", "peer"]
    command: tuple[str, ...] = ()

    def argv(self, model: Path, port: int, threads: int, slots: int, context: int) -> list[str]:
        """The command line that serves `model` to `slots` requests of `context` tokens each."""
        if self.kind == "ours":
            serve = [*STONECHAT, "serve", str(model), "--port", str(port)]
            return [*serve, "--threads", str(threads), *self.command]
        fixed = ("--host", "127.0.0.1", "--port", str(port), "-m", str(model))
        sizes = ("-t", str(threads), "-np", str(slots), "-c", str(slots * context))
        return [*self.command[:1], *fixed, *sizes, *self.command[1:]]


def read_kind(kind: Literal["ours", "peer"], text: str) -> ServerKind:
    """The server of `NAME=COMMAND`. Raises ValueError if there is no `=`."""
    name, separator, command = text.partition("=")
    if not (name and separator):
        raise ValueError(f"NAME=… is expected, not {text!r}")
    return ServerKind(name, kind, tuple(shlex.split(command)))


class Results(msgspec.Struct):
    """What all runs into one file measured."""

    machine: str
    threads: int
    costs: dict[str, ModelCost] = {}
    peaks: list[Peak] = []
    measurements: list[Measurement] = []


def main() -> None:
    arguments = parse()
    results = Results(cpu_name(), arguments.threads)
    if arguments.json and arguments.json.exists():
        results = msgspec.json.decode(arguments.json.read_bytes(), type=Results)
    kinds = [*arguments.ours, *arguments.peer]
    if not arguments.show:
        results.peaks.append(measure_peak(arguments.threads))
        for measurement in measure(arguments, results, kinds):
            results.measurements.append(measurement)
            print(describe(measurement), file=sys.stderr)
            if arguments.json:
                arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    print(summary(results, kinds[0].name))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="LABEL=PATH", help="a GGUF file")
    peer, ours = partial(read_kind, "peer"), partial(read_kind, "ours")
    add("--peer", action="append", default=[], metavar="NAME=COMMAND", type=peer)
    add("--ours", action="append", default=[], metavar="NAME=OPTIONS", type=ours)
    add("--models", nargs="+", help="run these labels only")
    add("--servers", nargs="+", help="run these names only")
    add("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    add("--rounds", type=int, default=2)
    add("--first-round", type=int, default=0, help="its number, which decides the prompts")
    add("--threads", type=int, default=usable_cpus())
    add("--quick", action="store_true", help="fewer requests and shorter answers")
    add("--json", type=Path, help="add the results to this file")
    add("--show", action="store_true", help="measure nothing, print the tables of --json")
    add("--log", type=Path, default=Path("cpu_peers.log"), help="output of the servers")
    arguments = parser.parse_args()
    arguments.ours = arguments.ours or [ServerKind("Stonechat", "ours")]
    return arguments


def measure(
    arguments: argparse.Namespace, results: Results, kinds: Sequence[ServerKind]
) -> Iterator[Measurement]:
    """Run every chosen load on every chosen server. A load that fails is reported and left out."""
    models = dict(pair.split("=", 1) for pair in arguments.model)
    labels = [label for label in models if label in (arguments.models or models)]
    chosen = [kind for kind in kinds if kind.name in (arguments.servers or (kind.name,))]
    rounds = range(arguments.first_round, arguments.first_round + arguments.rounds)
    results.costs |= {label: model_cost(Path(models[label])) for label in labels}
    for number, label, name, kind in product(rounds, labels, arguments.rows, chosen):
        try:
            figures = run(arguments, kind, Path(models[label]), name, number)
        except (BenchError, RuntimeError) as error:
            print(f"{label}, {kind.name}, {name}: {error}", file=sys.stderr)
            continue
        yield Measurement(model=label, server=kind.name, row=name, round=number, figures=figures)


def run(
    arguments: argparse.Namespace, kind: ServerKind, path: Path, name: str, number: int
) -> dict[str, float]:
    row = quick(ROWS[name]) if arguments.quick else ROWS[name]
    port = free_port()
    argv = kind.argv(path, port, arguments.threads, row.in_flight, row.context)
    health = "/ready" if kind.kind == "ours" else "/health"
    with started(argv, port, path=health, log=arguments.log) as server:
        return asyncio.run(figures_of(row, server, seed=1 + number))


def describe(measurement: Measurement) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in measurement.figures.items())
    return f"{measurement.model}, {measurement.server}, {measurement.row}: {figures}"


def summary(results: Results, ours: str) -> str:
    """The machine, what it can do at most (medians over the runs), and the tables."""
    names = dict.fromkeys(name for peak in results.peaks for name in peak.int8)
    int8 = {name: median(peak.int8[name] for peak in results.peaks) for name in names}
    peak = Peak(median(peak.bandwidth for peak in results.peaks), int8)
    rates = ", ".join(f"{rate / 1e12:.2f} with {name}" for name, rate in int8.items())
    head = (
        f"{results.machine}, {results.threads} threads: reads {peak.bandwidth / 1e9:.1f} GB/s; "
        f"10¹² int8 operations a second: {rates or 'not measured'}."
    )
    return f"{head}\n\n{tables(results.measurements, results.costs, peak, ours)}"


if __name__ == "__main__":
    main()
