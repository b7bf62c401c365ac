"""The results of `bench.py` as Markdown, ready for docs/performance.md."""

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]


def markdown(results: Results, kernels: bool = True) -> str:
    """All tables, with the device, the versions and the command. Those of kernels are many."""
    lines = [*_header(results)]
    for table in (_decode, _prefill, _mixed, _http, _starts, _compare, _missing):
        lines += table(results)
    if kernels:
        lines += _kernels(results)
    return "\n".join(lines) + "\n"


def _header(results: Results) -> Iterator[str]:
    device = results["sections"].get("device", {})
    environment = device.get("environment", {})
    name = environment.get("name") or environment.get("platform", "unknown device")
    versions = [
        f"{label} {environment[key]}"
        for key, label in (
            ("driver", "driver"),
            ("cuda", "CUDA"),
            ("torch", "PyTorch"),
            ("triton", "Triton"),
            ("transformers", "transformers"),
        )
        if environment.get(key)
    ]
    yield f"{name}; {', '.join(versions)}. `{results['command']}`, {results['seconds']:.0f} s."
    if "matmul_flops" in device:
        yield (
            f"Measured in the same run: {device['bandwidth_bytes_per_second'] / 1e9:.0f} GB/s in a "
            f"copy, {device['read_bytes_per_second'] / 1e9:.0f} GB/s in a read, "
            f"{device['matmul_flops'] / 1e12:.1f} TFLOP/s in a matrix product."
        )


def _models(results: Results, part: str) -> Iterator[tuple[str, Results]]:
    for name, section in results["sections"].items():
        kind, _, shape = name.partition(" ")
        if kind == part:
            yield shape, section


def _share(number: float | None) -> str:
    return "" if number is None else f"{number:.0%}"


def _decode(results: Results) -> list[str]:
    rows = []
    read_rate = results["sections"].get("device", {}).get("read_bytes_per_second")
    for shape, section in _models(results, "model"):
        mark = " (!)" if section.get("checks", {}).get("off") else ""
        for mode, batches in section.get("decode", {}).items():
            for batch, entry in batches.items():
                if "tokens_per_second" not in entry:
                    continue
                step = entry["milliseconds_per_step"]
                bound = None if read_rate is None else 1e3 * entry["bytes_per_step"] / read_rate
                profile = section.get("profile", {}).get(f"{mode}, batch {batch}", {})
                kernels = profile.get("milliseconds")
                rows.append(
                    f"| {shape}{mark} | {mode} | {batch} | {entry['tokens_per_second']:.0f} | "
                    f"{step:.3f} | {_share(bound and bound / step)} | "
                    f"{'' if kernels is None else f'{kernels:.3f}'} | "
                    f"{entry['host_milliseconds_per_step']:.3f} | {entry['graphs_per_step']:.2g} |"
                )
    return _table(
        "Decoding. The bound is the time to read weights and cached keys and values once, and to "
        "read and write recurrent states, at the rate measured. (!) marks a model whose logits are "
        "off from those of the plain model.",
        ("model", "sampling", "sequences", "tokens/s", "ms per step", "share of the bound",
         "kernels, ms", "host, ms", "graphs per step"),
        rows,
    )  # fmt: skip


def _prefill(results: Results) -> list[str]:
    flops = results["sections"].get("device", {}).get("matmul_flops")
    rows = []
    for shape, section in _models(results, "model"):
        entry, checks = section.get("prefill", {}), section.get("checks", {})
        if "tokens_per_second" in entry:
            share = None if flops is None else entry["flops_per_second"] / flops
            errors = [f"{checks[k]:.2g}" for k in ("prefill", "decode") if k in checks]
            rows.append(
                f"| {shape} | {entry['tokens_per_second']:.0f} | {_share(share)} | "
                f"{section['attention']} | {'yes' if section['in_graphs'] else 'no'} | "
                f"{section['quantization']} | {', '.join(errors)} of {checks.get('tolerance')} |"
            )
    return _table(
        "Prefill. The error is that of the logits after a prefill and a decode step, in standard "
        "deviations, beside what rounding explains.",
        ("model", "tokens/s", "share of the matmul rate", "attention", "graphs", "quantised",
         "error"),
        rows,
    )  # fmt: skip


def _starts(results: Results) -> list[str]:
    rows = []
    for name, section in results["sections"].items():
        if "seconds_by_phase" in section:
            phases = [f"{k} {s:.1f}" for k, s in section["seconds_by_phase"].items() if s >= 0.05]
            rows.append(f"| {name} | {section['seconds_to_ready']:.1f} | {', '.join(phases)} |")
    return _table("The engine's start.", ("part", "s", "of which, s"), rows)


def _mixed(results: Results) -> list[str]:
    rows = []
    for name, section in results["sections"].items():
        entry = section.get("mixed") or section.get("in_process") or {}
        if "tokens_per_second" in entry:
            rows.append(
                f"| {name} | {entry['tokens_per_second']:.0f} | {entry['steps']} | "
                f"{entry['steps_with_prompts']} | {entry['graph_replays']} | "
                f"{entry['host_share']:.0%} |"
            )
    return _table(
        "Streams of requests in process: prompts and answers mixed.",
        ("part", "tokens/s", "steps", "with prompts", "replays of graphs", "host works"),
        rows,
    )


def _http(results: Results) -> list[str]:
    entries = []
    for shape, section in _models(results, "http"):
        entries.append((shape, section))
        other = section.get("in_one_process", {})
        if "tokens_per_second" in other:
            entries.append((f"{shape}, server and engine in one process", section | other))
    rows = [
        f"| {shape} | {entry['streams']} | {entry['in_process_tokens_per_second']:.0f} | "
        f"{entry['tokens_per_second']:.0f} | "
        f"{_share(entry['tokens_per_second'] / entry['in_process_tokens_per_second'])} | "
        f"{', '.join(f'{k} {v:.2f}' for k, v in entry['busiest_cores'].items())} | "
        f"{entry['load_generator_cores']:.2f} | {entry['first_token_p50_seconds'] or 0:.3f} | "
        f"{entry['seconds_from_command_to_first_token']:.1f} |"
        for shape, entry in entries
        if "tokens_per_second" in entry
    ]
    return _table(
        "The same load on `stonechat serve` over HTTP and on an engine in process. The time from "
        "the command to the first token is with files and compiled kernels cached.",
        ("model", "streams", "in process, tokens/s", "HTTP, tokens/s", "share",
         "cores in the busiest second", "load generator, cores", "first token p50, s",
         "command to first token, s"),
        rows,
    )  # fmt: skip


def _kernels(results: Results) -> list[str]:
    tables = []
    for shape, section in _models(results, "model"):
        for name, profile in section.get("profile", {}).items():
            rows = [
                f"| {kernel['microseconds_added']:.1f} | {kernel['microseconds']:.1f} | "
                f"{kernel['calls']:.1f} | {kernel['name'][:100].replace('|', ' ')} | "
                f"{kernel['grid']} |"
                for kernel in profile.get("kernels", [])[:20]
            ]
            title = (
                f"{shape}, {name}: the kernels of a decode step. What they add is the time from "
                "the end of those before, pauses included. In their own time, some wait."
            )
            tables += _table(title, ("added, µs", "own, µs", "calls", "kernel", "grid"), rows)
    return tables


def _ours(models: Results, shape: str, batch: str) -> float | None:
    greedy: Results = models.get(shape, {}).get("decode", {}).get("greedy", {})
    rate: float | None = greedy.get(batch, {}).get("tokens_per_second")
    return rate


def _compare(results: Results) -> list[str]:
    rows = []
    models = dict(_models(results, "model"))
    for shape, section in _models(results, "compare"):
        for batch, rate in section.get("generate", {}).items():
            ours = _ours(models, shape, batch)
            if isinstance(rate, float):
                ratio = "" if ours is None else f"{ours / rate:.1f}"
                rows.append(f"| {shape} | generate, {batch} | {rate:.0f} | {ratio} |")
        rate = section.get("generate_batch", {}).get("tokens_per_second")
        if rate is not None:
            batch = str(section["generate_batch"]["batch"])
            ours = _ours(models, shape, batch)
            ratio = "" if ours is None else f"{ours / rate:.1f}"
            rows.append(f"| {shape} | generate_batch, {batch} | {rate:.0f} | {ratio} |")
    return _table(
        "Plain transformers in the same run: `generate` with a static cache, and `generate_batch`.",
        ("model", "what", "tokens/s", "Stonechat / transformers"),
        rows,
    )


def _missing(results: Results) -> list[str]:
    failures = [f"- {line}" for line in _failures(results["sections"], "")]
    return ["", "Not measured:", "", *failures] if failures else []


def _failures(node: Any, path: str) -> Iterator[str]:
    if not isinstance(node, dict):
        return
    for key in ("error", "skipped"):
        if isinstance(node.get(key), str):
            yield f"{path}: {node[key].splitlines()[0]}"
    for key, value in node.items():
        yield from _failures(value, f"{path}, {key}" if path else key)


def _table(title: str, columns: tuple[str, ...], rows: list[str]) -> list[str]:
    if not rows:
        return []
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return ["", title, "", *head, *rows]
