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
    found = device.get("environment", {})
    name = found.get("name") or found.get("platform", "unknown device")
    versions = [
        f"{label} {found[key]}"
        for key, label in (
            ("driver", "driver"),
            ("cuda", "CUDA"),
            ("torch", "PyTorch"),
            ("triton", "Triton"),
            ("transformers", "transformers"),
        )
        if found.get(key)
    ]
    yield f"{name}; {', '.join(versions)}. `{results['command']}`, {results['seconds']:.0f} s."
    if "matmul_flops" in device:
        yield (
            f"Measured in the same run: {device['bandwidth_bytes_per_second'] / 1e9:.0f} GB/s of a "
            f"copy, {device['read_bytes_per_second'] / 1e9:.0f} GB/s of reading, "
            f"{device['matmul_flops'] / 1e12:.1f} TFLOP/s of a matrix product. "
            f"Attention: {device.get('attention', '?')}."
        )


def _models(results: Results, part: str) -> Iterator[tuple[str, Results]]:
    for name, found in results["sections"].items():
        kind, _, shape = name.partition(" ")
        if kind == part:
            yield shape, found


def _share(number: float | None) -> str:
    return "" if number is None else f"{number:.0%}"


def _decode(results: Results) -> list[str]:
    rows = []
    read = results["sections"].get("device", {}).get("read_bytes_per_second")
    for shape, found in _models(results, "model"):
        for batch, at in found.get("decode", {}).items():
            if "tokens_per_second" not in at:
                continue
            step, kernels = at["milliseconds_per_step"], at["kernel_milliseconds_per_step"]
            bound = None if read is None else 1e3 * at["bytes_per_step"] / read / step
            rows.append(
                f"| {shape} | {batch} | {at['tokens_per_second']:.0f} | {step:.2f} | "
                f"{_share(bound)} | {'' if kernels is None else f'{kernels:.2f}'} | "
                f"{'' if kernels is None else f'{max(0.0, step - kernels):.2f}'} | "
                f"{at['tokens_per_second_with_top_p']:.0f} |"
            )
    return _table(
        "Decoding, greedy; the bound is the time to read weights and cached keys and values once.",
        ("model", "sequences", "tokens/s", "ms a step", "share of the bound",
         "kernels, ms", "gaps, ms", "tokens/s with top_p"),
        rows,
    )  # fmt: skip


def _prefill(results: Results) -> list[str]:
    flops = results["sections"].get("device", {}).get("matmul_flops")
    rows = []
    for shape, found in _models(results, "model"):
        at = found.get("prefill", {})
        if "tokens_per_second" in at:
            share = None if flops is None else at["flops_per_second"] / flops
            rows.append(
                f"| {shape} | {at['tokens_per_second']:.0f} | {_share(share)} | "
                f"{found['seconds_to_ready']:.1f} | {'yes' if found['in_graphs'] else 'no'} | "
                f"{found['attention']} | {found['quantization']} |"
            )
    return _table(
        "Prefill, and the engine's start on loaded weights (memory profile, graphs, checks).",
        ("model", "tokens/s", "share of the matmul rate", "start, s", "graphs", "attention",
         "quantised"),
        rows,
    )  # fmt: skip


def _http(results: Results) -> list[str]:
    rows = [
        f"| {shape} | {at['streams']} | {at['in_process_tokens_per_second']:.0f} | "
        f"{at['tokens_per_second']:.0f} | {_share(at['share_of_in_process'])} | "
        f"{at['first_token_p50_seconds']:.2f} | "
        f"{at['seconds_from_command_to_first_token']:.1f} |"
        for shape, at in _models(results, "http")
        if "share_of_in_process" in at
    ]
    return _table(
        "Over HTTP from `stonechat serve`, beside the same load on an engine in process; from the "
        "command to the first token with files and compiled kernels cached.",
        ("model", "streams", "in process, tokens/s", "HTTP, tokens/s", "share",
         "first token p50, s", "command to first token, s"),
        rows,
    )  # fmt: skip


def _compare(results: Results) -> list[str]:
    rows = []
    ours = dict(_models(results, "model"))
    for shape, found in _models(results, "compare"):
        for batch, rate in found.get("generate", {}).items():
            own = ours.get(shape, {}).get("decode", {}).get(batch, {}).get("tokens_per_second")
            if isinstance(rate, float):
                ratio = "" if own is None else f"{own / rate:.1f}"
                rows.append(f"| {shape} | generate, {batch} | {rate:.0f} | {ratio} |")
        rate = found.get("generate_batch", {}).get("tokens_per_second")
        if rate is not None:
            batch = str(found["generate_batch"]["batch"])
            own = ours.get(shape, {}).get("decode", {}).get(batch, {}).get("tokens_per_second")
            ratio = "" if own is None else f"{own / rate:.1f}"
            rows.append(f"| {shape} | generate_batch, {batch} | {rate:.0f} | {ratio} |")
    return _table(
        "Plain transformers in the same run: `generate` with a static cache, and `generate_batch`.",
        ("model", "what", "tokens/s", "ours over it"),
        rows,
    )


def _missing(results: Results) -> list[str]:
    found = [f"- {line}" for line in _failures(results["sections"], "")]
    return ["", "Not measured:", "", *found] if found else []


def _failures(found: Any, path: str) -> Iterator[str]:
    if not isinstance(found, dict):
        return
    for key in ("error", "skipped"):
        if isinstance(found.get(key), str):
            yield f"{path}: {found[key].splitlines()[0]}"
    for key, value in found.items():
        yield from _failures(value, f"{path}, {key}" if path else key)


def _table(title: str, columns: tuple[str, ...], rows: list[str]) -> list[str]:
    if not rows:
        return []
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return ["", title, "", *head, *rows]
