"""Report what this machine has, how models will run on it, and what would make them faster."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from stonechat_models import size_text
from stonechat_server.options import BaseOptions, option
from stonechat_server.terminal.tables import facts_table, new_console

if TYPE_CHECKING:
    from stonechat_models import Gpu, GpuSupport, Machine

LOW_DISK = 2 * 10**9
LOW_MEMORY = 2 * 10**9


class Options(BaseOptions):
    """The options of `stonechat doctor`."""

    prints_json: bool = option(False, "print JSON", flag="--json")
    measure: bool = option(True, "do not measure memory bandwidth")


def run(options: Options) -> int:
    """Inspect the machine and print a report. Always returns 0: advice is not an error."""
    from stonechat_models import inspect_machine, measure_bandwidth, stored_chat_templates

    machine = inspect_machine(lambda line: print(line, file=sys.stderr))
    device = chosen_device(machine)
    bandwidth = {}
    if options.measure:
        bandwidth["cpu"] = measure_bandwidth("cpu")
        if device != "cpu":
            bandwidth[device] = measure_bandwidth(device)
    suggestions = [*advice(machine), *template_advice(stored_chat_templates())]
    if options.prints_json:
        fields = dataclasses.asdict(machine) | {"cache_folder": str(machine.cache_folder)}
        report = {**fields, "device": device, "bandwidth": bandwidth, "advice": suggestions}
        print(json.dumps(report, indent=2))
    else:
        print_report(new_console(), machine, device, bandwidth, suggestions)
    return 0


def chosen_device(machine: "Machine") -> str:
    """The device that `--device auto` chooses."""
    return machine.gpus[0].kind if machine.gpus else "cpu"


def chosen_path(machine: "Machine") -> str:
    """A description of how models will run."""
    if machine.gpus:
        return f"PyTorch on {machine.gpus[0].name}"
    if machine.native_isa is not None:
        return f"compiled CPU kernels ({machine.native_isa}) if they know the model, else PyTorch"
    return "PyTorch on the CPU"


def advice(machine: "Machine") -> Iterator[str]:
    """Yield suggestions that would make models faster, the most important first."""
    if machine.has_nvidia_driver and not machine.gpus:
        why = "" if machine.torch_cuda else f" (torch {machine.torch_version} is built without it)"
        yield (
            f"there is an NVIDIA driver, but torch cannot use CUDA{why}: install a CUDA build of "
            "torch"
        )
    for gpu in machine.gpus[:1]:
        yield from gpu_advice(gpu)
    if not machine.gpus and machine.native_isa is None:
        yield f"the compiled CPU kernels cannot be used: {machine.native_refusal}"
        if machine.compiler is None:
            yield "install a C++ compiler (on Debian: apt-get install g++): decoding gets faster"
    if not machine.gpus and machine.missing_instructions is not None:
        yield f"quantised models run more slowly: {machine.missing_instructions}"
    if machine.cpu_quota is not None and machine.cpu_quota < machine.usable_cpus:
        yield (
            f"the container has a CPU quota of {machine.cpu_quota:g} processors but sees "
            f"{machine.usable_cpus}: set --threads {max(1, int(machine.cpu_quota))}, or raise the "
            "quota"
        )
    if machine.num_cores < machine.usable_cpus:
        yield (
            f"{machine.usable_cpus} processors are {machine.num_cores} cores with two threads "
            "each: more threads than cores rarely help"
        )
    if machine.free_memory < LOW_MEMORY:
        yield f"only {size_text(machine.free_memory)} of memory are free"
    if machine.cache_free_bytes < LOW_DISK:
        yield f"only {size_text(machine.cache_free_bytes)} are free at {machine.cache_folder}"
    if not machine.package_versions["uvloop"]:
        yield "install uvloop: a faster event loop for many streams"


def gpu_advice(gpu: "Gpu") -> Iterator[str]:
    """Yield what keeps models on a GPU from running, or from running fast."""
    if gpu.support is None:
        return
    if gpu.support.torch_refusal is not None:
        yield (
            f"{gpu.name} has compute capability {gpu.capability}, and {gpu.support.torch_refusal}: "
            "install a build of torch for it, or use --device cpu"
        )
    if gpu.support.triton_refusal is not None:
        yield (
            f"models run slowly on {gpu.name}, without Triton kernels and CUDA graphs: "
            f"{gpu.support.triton_refusal}"
        )


def template_advice(templates: Mapping[str, str | None]) -> Iterator[str]:
    """Yield what to know of the models on this machine, whose chat templates these are by name."""
    from stonechat_server.prompt.chat_template import NO_TEMPLATE
    from stonechat_server.prompt.template_traits import UNKNOWN_FORM, read_traits

    for name, template in templates.items():
        if template is None:
            yield f"{name}: {NO_TEMPLATE}"
        elif not read_traits(template, "auto", lambda text: False, has_reasoning=False).is_known:
            yield f"{name}: {UNKNOWN_FORM}"


def print_report(
    console: Console,
    machine: "Machine",
    device: str,
    bandwidth: dict[str, float],
    suggestions: list[str],
) -> None:
    """Print the report as text."""
    console.print(facts_table(_facts(machine, bandwidth)))
    console.print(f"\nWill run on [bold]{device}[/]: {chosen_path(machine)}", highlight=False)
    for line in suggestions:
        console.print(f"[yellow]![/] {line}", highlight=False)
    if not suggestions:
        console.print("[green]There is nothing to improve.[/]")


def support_text(support: "GpuSupport") -> str:
    """Say how models run on a CUDA device."""
    graphs = "with" if support.triton_refusal is None else "without"
    refusals = support.precision_refusals
    possible = [name for name, refusal in refusals.items() if refusal is None]
    impossible = [name for name, refusal in refusals.items() if refusal is not None]
    return (
        f"{support.dtype}, {support.attention} attention, {graphs} CUDA graphs; "
        f"can quantise to {', '.join(possible) or 'nothing'}"
        + (f", not to {', '.join(impossible)}" if impossible else "")
    )


def _facts(machine: "Machine", bandwidth: dict[str, float]) -> Iterator[tuple[str, str]]:
    quota = f", quota {machine.cpu_quota:g}" if machine.cpu_quota is not None else ""
    yield "system", machine.system
    yield "processor", machine.cpu
    yield "cores", f"{machine.num_cores} ({machine.usable_cpus} of {machine.num_cpus}{quota})"
    yield "instructions", ", ".join(machine.instruction_sets) or "none that make models faster"
    speed = f", reads {bandwidth['cpu'] / 1e9:.1f} GB/s" if "cpu" in bandwidth else ""
    free, total = size_text(machine.free_memory), size_text(machine.total_memory)
    yield "memory", f"{free} of {total} free{speed}"
    for gpu in machine.gpus:
        speed = f", moves {bandwidth[gpu.kind] / 1e9:,.0f} GB/s" if gpu.kind in bandwidth else ""
        yield (
            "GPU",
            (
                f"{gpu.name} (capability {gpu.capability}), {size_text(gpu.free_memory)} of "
                f"{size_text(gpu.total_memory)} free{speed}"
            ),
        )
        if gpu.support is not None:
            yield "", support_text(gpu.support)
    if not machine.gpus:
        yield "GPU", "none that torch can use"
    cuda = f", CUDA {machine.torch_cuda}" if machine.torch_cuda else ", no CUDA"
    yield "torch", f"{machine.torch_version}{cuda}"
    versions = machine.package_versions.items()
    yield "packages", ", ".join(f"{name} {version or 'missing'}" for name, version in versions)
    yield "compiler", machine.compiler or "none"
    missing = f": {machine.missing_instructions}" if machine.missing_instructions else ""
    kernels = f"{machine.native_isa}{missing}"
    yield "CPU kernels", kernels if machine.native_isa else f"not used: {machine.native_refusal}"
    if machine.native_library is not None:
        yield "", machine.native_library
    yield "cache", f"{machine.cache_folder}, {size_text(machine.cache_free_bytes)} free"
