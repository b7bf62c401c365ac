"""The text that the server prints when it has started."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.filesize import decimal

if TYPE_CHECKING:
    from stonechat_models import ModelInfo


def start_banner(
    model: "ModelInfo", name: str, url: str, needs_key: bool, warnings: Sequence[str] = ()
) -> str:
    """The model and its limits, and a curl command to paste into a shell.

    With `needs_key` the command reads the key from the variable `STONECHAT_API_KEY`.
    """
    attention = f"{model.attention_backend} attention, " if model.attention_backend else ""
    quantization = "" if model.quantization == "none" else f", {model.quantization}"
    rows = {
        "model": f"{name} ({model.architecture}, {model.num_parameters / 1e6:,.0f}M parameters)",
        "device": f"{model.device}, {model.dtype}{quantization}, {model.backend} backend, "
        f"{attention}{model.threads} threads",
        "weights": decimal(model.weight_bytes),
        "KV cache": f"{model.kv_capacity_tokens:,} tokens in "
        + decimal(model.kv_capacity_tokens * model.kv_bytes_per_token),
        "context": f"{model.max_model_len:,} tokens; "
        f"{model.kv_capacity_tokens / model.max_model_len:.1f} requests of full length fit",
        "batch": f"{model.max_num_seqs} sequences and {model.max_batch_tokens:,} tokens per step",
    }
    if model.adapter:
        rows["adapter"] = f"{model.adapter}, merged into the weights"
    if recommended := _sampling_text(model):
        rows["sampling"] = f"{recommended}, where a request leaves it out (--generation-config)"
    if model.state_bytes:
        rows["states"] = (
            f"{decimal(model.state_bytes)} of recurrent state per sequence, "
            f"{model.num_state_slots} at most"
        )
    if model.keeps_state and not model.exact_chunks:
        rows["prompts"] = "computed in one piece each; no prefix is cached"
    labelled = [*rows.items(), *(("warning", text) for text in warnings)]
    lines = [f"  {label:<9} {text}" for label, text in labelled]
    return "\n".join(
        ["", *lines, "", f"Ready at {url}/v1. Try:", "", curl_line(name, url, needs_key), ""]
    )


def _sampling_text(model: "ModelInfo") -> str:
    """The parameters that the model's makers recommend; empty if there are none."""
    values = asdict(model.sampling_defaults)
    return ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)


def curl_line(name: str, url: str, needs_key: bool) -> str:
    """A curl command for a POSIX shell that sends a chat request."""
    messages = [{"role": "user", "content": "Say hello."}]
    body = json.dumps({"model": name, "messages": messages, "max_completion_tokens": 100})
    quoted = body.replace("'", "'\\''")
    key = ' -H "Authorization: Bearer $STONECHAT_API_KEY"' if needs_key else ""
    return f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{quoted}'"
