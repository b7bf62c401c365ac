"""The results of `bench.py` as Markdown, ready for docs/performance.md."""

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]


def markdown(results: Results) -> str:
    """All tables, with the device, the versions and the command."""
    lines = [*_header(results)]
    for table in (_decode, _prefill, _http, _compare, _missing):
        lines += table(results)
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
            f"{device['matmul_flops'] / 1e12:.1f} TFLOP/s in a matrix product. "
            f"Attention: {device.get('attention', '?')}."
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
        for batch, entry in section.get("decode", {}).items():
            if "tokens_per_second" not in entry:
                continue
            step, kernels = entry["milliseconds_per_step"], entry["kernel_milliseconds_per_step"]
            bound = None if read_rate is None else 1e3 * entry["bytes_per_step"] / read_rate / step
            rows.append(
                f"| {shape} | {batch} | {entry['tokens_per_second']:.0f} | {step:.2f} | "
                f"{_share(bound)} | {'' if kernels is None else f'{kernels:.2f}'} | "
                f"{'' if kernels is None else f'{max(0.0, step - kernels):.2f}'} | "
                f"{entry['tokens_per_second_with_top_p']:.0f} |"
            )
    return _table(
        "Greedy decoding. The bound is the time to read weights and cached keys and values once.",
        ("model", "sequences", "tokens/s", "ms per step", "share of the bound",
         "kernels, ms", "gaps, ms", "tokens/s with top_p"),
        rows,
    )  # fmt: skip


def _prefill(results: Results) -> list[str]:
    flops = results["sections"].get("device", {}).get("matmul_flops")
    rows = []
    for shape, section in _models(results, "model"):
        entry = section.get("prefill", {})
        if "tokens_per_second" in entry:
            share = None if flops is None else entry["flops_per_second"] / flops
            rows.append(
                f"| {shape} | {entry['tokens_per_second']:.0f} | {_share(share)} | "
                f"{section['seconds_to_ready']:.1f} | {'yes' if section['in_graphs'] else 'no'} | "
                f"{section['attention']} | {section['quantization']} |"
            )
    return _table(
        "Prefill, and the engine's start on loaded weights (memory profile, graphs, checks).",
        ("model", "tokens/s", "share of the matmul rate", "start, s", "graphs", "attention",
         "quantised"),
        rows,
    )  # fmt: skip


def _http(results: Results) -> list[str]:
    rows = [
        f"| {shape} | {entry['streams']} | {entry['in_process_tokens_per_second']:.0f} | "
        f"{entry['tokens_per_second']:.0f} | {_share(entry['share_of_in_process'])} | "
        f"{entry['first_token_p50_seconds']:.2f} | "
        f"{entry['seconds_from_command_to_first_token']:.1f} |"
        for shape, entry in _models(results, "http")
        if "share_of_in_process" in entry
    ]
    return _table(
        "The same load on `stonechat serve` over HTTP and on an engine in process. The time from "
        "the command to the first token is with files and compiled kernels cached.",
        ("model", "streams", "in process, tokens/s", "HTTP, tokens/s", "share",
         "first token p50, s", "command to first token, s"),
        rows,
    )  # fmt: skip


def _compare(results: Results) -> list[str]:
    rows = []
    models = dict(_models(results, "model"))
    for shape, section in _models(results, "compare"):
        for batch, rate in section.get("generate", {}).items():
            ours = models.get(shape, {}).get("decode", {}).get(batch, {}).get("tokens_per_second")
            if isinstance(rate, float):
                ratio = "" if ours is None else f"{ours / rate:.1f}"
                rows.append(f"| {shape} | generate, {batch} | {rate:.0f} | {ratio} |")
        rate = section.get("generate_batch", {}).get("tokens_per_second")
        if rate is not None:
            batch = str(section["generate_batch"]["batch"])
            ours = models.get(shape, {}).get("decode", {}).get(batch, {}).get("tokens_per_second")
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
