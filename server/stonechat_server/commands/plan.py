"""Estimate a model's memory use and speed from its configuration and file headers alone."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from stonechat_models import size_text
from stonechat_server.model_settings import ENGINE_SETTINGS
from stonechat_server.options import BaseOptions, option
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only
from stonechat_server.terminal.tables import facts_table, new_console, new_table

if TYPE_CHECKING:
    from stonechat_models import ModelSurvey, ServingForm

PlanRow = dict[str, str | int | float | bool | None]


class Options(BaseOptions):
    """The options of `stonechat plan`: those of the engine, and what to assume and print."""

    settings: Annotated[Settings, Only(*ENGINE_SETTINGS)]
    bandwidth: float | None = option(
        None, "memory bandwidth to assume (default: measure it)", metavar="GB/S", gt=0
    )
    prints_json: bool = option(False, "print JSON", flag="--json")


def run(options: Options) -> int:
    """Print the plan. Returns 1 if the model would be refused. Raises `ModelLoadError`."""
    from stonechat_models import measure_bandwidth, survey_model

    config = options.settings.engine_config()
    survey = survey_model(config, lambda line: print(line, file=sys.stderr))
    if options.bandwidth is not None:
        bandwidth = options.bandwidth * 1e9
    else:
        bandwidth = measure_bandwidth(survey.device)
    rows = [plan_row(survey, form, bandwidth) for form in survey.forms]
    if options.prints_json:
        print(json.dumps(describe(survey, rows, bandwidth), indent=2))
    else:
        print_plan(new_console(), survey, rows, bandwidth)
    return 0 if survey.refusal is None else 1


def plan_row(survey: "ModelSurvey", form: "ServingForm", bandwidth: float) -> PlanRow:
    """The memory, capacity and speed of one `ServingForm`; `bandwidth` is in bytes per second."""
    if survey.device == "cpu":  # its ranks share the bandwidth
        bandwidth /= survey.num_ranks
    per_token = form.kv_bytes_per_token
    free = max(0, survey.free_memory - form.weight_bytes)
    return {
        "form": form.name,
        "backend": form.backend,
        "default": form.is_default,
        "weight_bytes": form.weight_bytes,
        "fits": form.weight_bytes < survey.free_memory,
        "kv_bytes_per_token": per_token,
        "kv_tokens": form.kv_tokens,
        "kv_tokens_at_most": free // per_token if per_token else 0,
        "full_length_requests": form.kv_tokens // survey.max_model_len,
        "full_length_requests_at_most": free // (per_token * survey.max_model_len)
        if per_token
        else 0,
        "decode_tokens_per_second_at_most": bandwidth / max(1, form.decode_bytes),
        "decode_tokens_per_second_at_full_length": bandwidth
        / max(1, form.decode_bytes + per_token * survey.max_model_len),
    }


def describe(survey: "ModelSurvey", rows: list[PlanRow], bandwidth: float) -> dict[str, object]:
    """The whole plan as a JSON object."""
    return {
        "model": survey.name,
        "architecture": survey.architecture,
        "served": survey.refusal is None,
        "use": survey.use,
        "refusal": survey.refusal,
        "native_refusal": survey.native_refusal,
        "parameters": survey.num_parameters,
        "active_parameters": survey.num_active_parameters,
        "stored_bytes": survey.stored_bytes,
        "stored_types": dict(survey.stored_types),
        "max_model_len": survey.max_model_len,
        "device": survey.device,
        "images": survey.may_take_images and not survey.image_refusal,
        "image_refusal": survey.image_refusal,
        "audio": survey.may_take_audio and not survey.audio_refusal,
        "audio_refusal": survey.audio_refusal,
        "attention": survey.attention,
        "graphs_refusal": survey.graphs_refusal,
        "tensor_parallel": survey.num_ranks,
        "total_memory": survey.total_memory,
        "free_memory": survey.free_memory,
        "draft_weight_bytes": survey.draft.weight_bytes if survey.draft else 0,
        "draft_kv_bytes_per_token": survey.draft.kv_bytes_per_token if survey.draft else 0,
        "bandwidth": bandwidth,
        "forms": rows,
    }


def print_plan(
    console: Console, survey: "ModelSurvey", rows: list[PlanRow], bandwidth: float
) -> None:
    """Print the plan as tables."""
    console.print(facts_table(_facts(survey, bandwidth).items()))
    if survey.use != "generation":
        table = new_table(("precision", "weights"))
        for row in rows:
            table.add_row(*_cells(row)[:2])
        console.print(table)
        return
    table = new_table(("precision", "weights", "KV/token", "KV tokens", "requests", "tokens/s"))
    for row in rows:
        table.add_row(*_cells(row), style="" if row["fits"] else "dim")
    console.print(table)
    console.print(
        "*: the default. KV tokens: capacity of the KV cache by default. Requests: how many of "
        "full length fit, by default / with all free memory for the cache. Tokens/s: the upper "
        "bound that memory bandwidth sets for one request with a short context.",
        style="dim",
    )


def _facts(survey: "ModelSurvey", bandwidth: float) -> Mapping[str, str]:
    active = survey.num_active_parameters
    mixture = f", {_count(active)} active per token" if active < survey.num_parameters else ""
    stored_types = ", ".join(
        f"{name} {share / survey.num_parameters:.0%}"
        for name, share in sorted(survey.stored_types.items(), key=lambda item: -item[1])
    )
    return {
        "model": f"{survey.name} ({survey.architecture})",
        "served": _served_text(survey),
        **_media_facts(survey),
        "parameters": f"{_count(survey.num_parameters)}{mixture}",
        "stored": f"{size_text(survey.stored_bytes)} ({stored_types})",
        **_context_fact(survey),
        "device": f"{survey.device}, {size_text(survey.free_memory)} of "
        f"{size_text(survey.total_memory)} free, reads {bandwidth / 1e9:.1f} GB/s",
        **_ranks_fact(survey),
        **_draft_fact(survey),
        **_steps_fact(survey),
    }


def _context_fact(survey: "ModelSurvey") -> Mapping[str, str]:
    """How long a conversation may be."""
    has_context = survey.use == "generation"
    return {"context": f"{survey.max_model_len:,} tokens"} if has_context else {}


def _media_facts(survey: "ModelSurvey") -> Mapping[str, str]:
    """Whether a model for more than text takes images and audio."""
    images = (survey.may_take_images, survey.image_refusal)
    audio = (survey.may_take_audio, survey.audio_refusal)
    return {
        name: f"no: {refusal}" if refusal else "yes, if the checks at load pass"
        for name, (may, refusal) in {"images": images, "audio": audio}.items()
        if survey.use == "generation" and (may or refusal)
    }


def _ranks_fact(survey: "ModelSurvey") -> Mapping[str, str]:
    """How many devices share the model."""
    if survey.num_ranks == 1:
        return {}
    return {"ranks": f"{survey.num_ranks}; free memory and the sizes below are those of each"}


def _draft_fact(survey: "ModelSurvey") -> Mapping[str, str]:
    """What the draft model takes."""
    draft = survey.draft
    if draft is None:
        return {}
    return {
        "draft": f"{draft.name}, {draft.backend} backend: weights {size_text(draft.weight_bytes)} "
        f"(not part of the free memory), {size_text(draft.kv_bytes_per_token)} of KV/token (part "
        "of that below)"
    }


def _steps_fact(survey: "ModelSurvey") -> Mapping[str, str]:
    """How steps run on a CUDA device."""
    if survey.use != "generation" or not survey.device.startswith("cuda"):
        return {}
    refusal = survey.graphs_refusal
    graphs = "with CUDA graphs" if refusal is None else f"without CUDA graphs: {refusal}"
    return {"steps": f"{survey.attention} attention, {graphs}"}


def _served_text(survey: "ModelSurvey") -> str:
    if survey.refusal is not None:
        return f"[bold red]no[/]: {survey.refusal}"
    if survey.use != "generation":
        return f"[green]yes[/], for {survey.use}, through PyTorch"
    if survey.native_refusal is None:
        return "[green]yes[/], by the compiled CPU path"
    is_plain = any(form.backend == "plain" for form in survey.forms)
    way = "with its own cache, one sequence at a time" if is_plain else "with the paged KV cache"
    return (
        f"[green]yes[/], through PyTorch {way}, if it passes the checks at load "
        f"(not by the compiled CPU path: {survey.native_refusal})"
    )


def _cells(row: PlanRow) -> list[str]:
    mark = " *" if row["default"] else ""
    if not row["fits"]:
        return [f"{row['form']}{mark}", size_text(int(row["weight_bytes"] or 0)),
                "does not fit", "", "", ""]  # fmt: skip
    return [
        f"{row['form']}{mark}",
        size_text(int(row["weight_bytes"] or 0)),
        size_text(int(row["kv_bytes_per_token"] or 0)),
        f"{row['kv_tokens']:,}",
        f"{row['full_length_requests']:,} / {row['full_length_requests_at_most']:,}",
        f"{row['decode_tokens_per_second_at_most']:,.0f}",
    ]


def _count(value: int) -> str:
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return str(value)
