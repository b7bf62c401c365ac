"""Measure a server under load, check the measurement, and report it."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stonechat_server.bench.results import BenchResult, Slo, read_json, write_json
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.target import BenchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    default = BenchSettings()
    add = parser.add_argument
    add("--base-url", default=default.base_url, help="API root of any OpenAI-compatible server")
    add("--model", help="model to request (default: the first that the server lists)")
    add("--api-key", default=os.environ.get("OPENAI_API_KEY"),
        help="API key (default: $OPENAI_API_KEY)")  # fmt: skip
    add("--insecure", action="store_true", help="do not verify the server's certificate")
    load = parser.add_argument_group("load")
    add = load.add_argument
    add("--concurrency", type=_ints, default=default.concurrency, metavar="N,N,…",
        help="closed loop: requests in flight, one level per number (default: 1,4,16)")  # fmt: skip
    add("--rate", type=_floats, default=(), metavar="R,R,…",
        help="open loop instead: Poisson arrivals at these rates (requests/s)")  # fmt: skip
    add("--requests", type=_positive,
        help="requests per level (default: 32 with --rate, else 4 per request in flight, "
        "at least 8)")  # fmt: skip
    add("--warmup", type=_natural, default=default.warmup,
        help="unmeasured requests before each level")  # fmt: skip
    add("--repeats", type=_positive, default=default.repeats, help="how often to run each level")
    add("--timeout", type=float, default=default.timeout,
        help="longest duration of a request in seconds")  # fmt: skip
    prompts = parser.add_argument_group("prompts")
    add = prompts.add_argument
    add("--input-tokens", type=_positive, default=default.input_tokens,
        help="length of a prompt in tokens, including the chat template")  # fmt: skip
    add("--output-tokens", type=_positive, default=default.output_tokens,
        help="length of an answer in tokens; a maximum where ignore_eos has no effect")  # fmt: skip
    add("--prefix-share", type=_share, default=default.prefix_share,
        help="share of each prompt, 0 to 1, that is a common prefix of all prompts")  # fmt: skip
    source = prompts.add_mutually_exclusive_group()
    source.add_argument("--prompts", type=Path,
        help="file of prompts: plain text, one prompt per line, or .jsonl")  # fmt: skip
    source.add_argument("--sharegpt", type=Path, help="file of prompts: ShareGPT-style JSON")
    add("--no-ignore-eos", action="store_true", help="let answers end where the model ends them")
    add("--temperature", type=float, default=default.temperature,
        help="temperature, sent with every request")  # fmt: skip
    add("--extra-body", type=_json_object, default={},
        help="JSON object whose fields are sent with every request")  # fmt: skip
    add("--seed", type=int, default=default.seed, help="seed of prompts and arrival times")
    results = parser.add_argument_group("results")
    add = results.add_argument
    add("--slo", type=_slo, metavar="ttft=MS,tpot=MS,e2e=MS",
        help="latency bounds that a request must meet to count as goodput")  # fmt: skip
    add("--label", help="name of this run in reports")
    add("--json", type=Path, metavar="FILE", help="write all results as JSON")
    add("--html", type=Path, metavar="FILE", help="write a self-contained HTML report")
    add("--compare", type=Path, nargs="+", default=[], metavar="JSON",
        help="JSON files of earlier runs to show beside this run in the report")  # fmt: skip
    add("--report-only", action="store_true",
        help="measure nothing; write a report of the --compare files to --html")  # fmt: skip
    add("--roofline", action="store_true",
        help="measure this machine's memory bandwidth, and report the share that decoding "
        "uses")  # fmt: skip
    add("--weight-bytes", type=_positive,
        help="size of the weights for --roofline, if the server does not report it")  # fmt: skip
    add("--self-test", action="store_true", help="measure only the load generator")
    add("--quiet", action="store_true", help="print no progress and no tables")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. The exit status is 1 if it could not run or a check failed."""
    parser = argparse.ArgumentParser(prog="stonechat bench", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Run with parsed flags."""
    console = Console(quiet=arguments.quiet)
    try:
        if arguments.self_test:
            return _self_test(console)
        earlier = [read_json(path.read_bytes()) for path in arguments.compare]
        results = earlier if arguments.report_only else [*earlier, _measure(arguments, console)]
        if arguments.html is not None:
            from stonechat_server.bench.report import render_report

            arguments.html.write_text(render_report(results), encoding="utf-8")
            console.print(f"report: {arguments.html}", highlight=False)
        elif arguments.report_only:
            raise BenchError("--report-only needs --compare and --html")
    except (BenchError, ValueError, OSError) as error:
        print(f"stonechat bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stonechat bench: stopped; nothing was written", file=sys.stderr)
        return 130
    passed = arguments.report_only or all(check.passed for check in results[-1].checks)
    return 0 if passed else 1


def _measure(arguments: argparse.Namespace, console: Console) -> BenchResult:
    from stonechat_server.bench.runner import run_bench
    from stonechat_server.bench.show import LiveWatcher, print_result

    with LiveWatcher(console) as watcher:
        result = asyncio.run(run_bench(settings_from(arguments), watcher))
    print_result(console, result)
    if arguments.json is not None:
        arguments.json.write_bytes(write_json(result))
        console.print(f"result: {arguments.json}", highlight=False)
    return result


def _self_test(console: Console) -> int:
    from stonechat_server.bench.selftest import REQUIRED_TOKENS_PER_SECOND, measure_generator

    speed = measure_generator()
    console.print(
        f"the load generator read {speed.num_tokens:,} tokens as SSE, one chunk per token: "
        f"{speed.tokens_per_second:,.0f} per second, or by its own processor time "
        f"{speed.tokens_per_core_second:,.0f} per second on one core"
    )
    return 0 if speed.tokens_per_core_second >= REQUIRED_TOKENS_PER_SECOND else 1


def settings_from(arguments: argparse.Namespace) -> BenchSettings:
    """The settings that the parsed flags describe."""
    return BenchSettings(
        base_url=arguments.base_url,
        model=arguments.model,
        api_key=arguments.api_key,
        verify_tls=not arguments.insecure,
        concurrency=arguments.concurrency,
        rates=arguments.rate,
        num_requests=arguments.requests,
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        prefix_share=arguments.prefix_share,
        prompts_file=arguments.prompts,
        sharegpt=arguments.sharegpt,
        ignore_eos=not arguments.no_ignore_eos,
        temperature=arguments.temperature,
        extra_body=arguments.extra_body,
        warmup=arguments.warmup,
        repeats=arguments.repeats,
        seed=arguments.seed,
        timeout=arguments.timeout,
        slo=arguments.slo,
        roofline=arguments.roofline,
        weight_bytes=arguments.weight_bytes,
        label=arguments.label,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def _ints(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _floats(text: str) -> tuple[float, ...]:
    rates = tuple(float(part) for part in text.split(","))
    if any(not rate > 0 for rate in rates):
        raise argparse.ArgumentTypeError("a rate must be above 0")
    return rates


def _json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def _slo(text: str) -> Slo:
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in ("ttft", "tpot", "e2e"):
            raise argparse.ArgumentTypeError(f"unknown bound {name!r}: ttft, tpot or e2e")
        bounds[name] = float(value) / 1000
    return Slo(**bounds)
