"""The text that the server prints when it has started."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from stonechat_models import size_text

if TYPE_CHECKING:
    from stonechat_models import ModelInfo, ModelUse
    from stonechat_server.catalog.entry import Entry

KEY_VARIABLE = "STONECHAT_API_KEY"
FIRST_REQUESTS: "Mapping[ModelUse, tuple[str, dict[str, object]]]" = {
    "generation": (
        "chat/completions",
        {"messages": [{"role": "user", "content": "Say hello."}], "max_completion_tokens": 100},
    ),
    "embeddings": ("embeddings", {"input": "Hello."}),
    "reranking": ("rerank", {"query": "Who?", "documents": ["Nobody.", "A friend."]}),
    "transcription": ("audio/transcriptions", {}),
}
"""A path below `/v1` and a body for a first try, by what the model does."""


def start_banner(
    model: "ModelInfo",
    name: str,
    url: str,
    needs_key: bool,
    warnings: Sequence[str] = (),
    max_images: int = 0,
    max_audio_clips: int = 0,
    max_videos: int = 0,
) -> str:
    """The model and its limits, the server's addresses, and a curl command to paste into a shell.

    With `needs_key` the command reads the key from the variable `STONECHAT_API_KEY`. A request may
    have `max_images` if the model takes images, and so on.
    """
    attention = f"{model.attention_backend} attention, " if model.attention_backend else ""
    quantization = "" if model.quantization == "none" else f", {model.quantization}"
    rows = {
        "model": f"{name} ({model.architecture}, {model.num_parameters / 1e6:,.0f}M parameters)",
        "device": f"{model.device}, {model.dtype}{quantization}, {model.backend} backend, "
        f"{attention}{model.threads} threads{_ranks_text(model)}",
        "weights": size_text(model.weight_bytes),
        **(_generation_rows(model) if model.num_blocks else {}),
        **_embedding_rows(model),
        **_ranking_rows(model),
        **_media_rows("images", model.images, model.image_refusal, f"up to {max_images} a request"),
        **(
            _speech_rows(model)
            or _media_rows(
                "audio",
                model.audio,
                model.audio_refusal,
                f"up to {max_audio_clips} clips a request",
            )
        ),
        **_media_rows("videos", model.video, model.video_refusal, f"up to {max_videos} a request"),
        "batch": _batch_text(model),
        **_draft_rows(model),
        **_adapter_rows(model),
    }
    if recommended := _sampling_text(model):
        rows["sampling"] = f"{recommended}, where a request leaves it out (--generation-config)"
    if model.state_bytes:
        rows["states"] = (
            f"{size_text(model.state_bytes)} of recurrent state per sequence, "
            f"{model.num_state_slots} at most"
        )
    if model.keeps_state and not model.exact_chunks:
        rows["prompts"] = "computed in one piece each; no prefix is cached"
    labelled = [*rows.items(), *(("warning", text) for text in warnings)]
    lines = [f"  {label:<9} {text}" for label, text in labelled]
    return "\n".join(["", *lines, "", *_ending(name, url, needs_key, model.use)])


def _batch_text(model: "ModelInfo") -> str:
    if model.speech is not None:
        return f"{model.max_num_seqs} windows of speech per step"
    return f"{model.max_num_seqs} sequences and {model.max_batch_tokens:,} tokens per step"


def _draft_rows(model: "ModelInfo") -> dict[str, str]:
    draft = model.draft
    if draft is None:
        return {}
    kv_bytes = model.kv_capacity_tokens * draft.kv_bytes_per_token
    return {
        "draft": f"{draft.name} ({draft.num_parameters / 1e6:,.0f}M parameters), weights "
        f"{size_text(draft.weight_bytes)}, KV cache {size_text(kv_bytes)}, up to "
        f"{draft.num_draft_tokens} tokens a step"
    }


def _adapter_rows(model: "ModelInfo") -> dict[str, str]:
    rows = {}
    if model.adapter:
        rows["adapter"] = f"{model.adapter}, merged into the weights"
    if model.adapters:
        names = ", ".join(adapter.name for adapter in model.adapters)
        num_bytes = sum(adapter.num_bytes for adapter in model.adapters)
        rows["adapters"] = f"{names} ({size_text(num_bytes)}), each a model of its own name"
    return rows


def models_banner(
    entries: "Sequence[Entry]", url: str, needs_key: bool, warnings: Sequence[str] = ()
) -> str:
    """The same for several models: a line for each, with its state and its size."""
    width = max(len(entry.name) for entry in entries)
    first = entries[0].served
    use = "generation" if first is None else first.engine.model.use
    lines = []
    for entry in entries:
        size = "" if entry.num_bytes is None else f", {size_text(entry.num_bytes)}"
        state = f"{entry.state}{size}" if entry.error is None else f"failed: {entry.error.message}"
        lines.append(f"  {entry.name:<{width}}  {state}")
    lines += [f"  warning   {text}" for text in warnings]
    return "\n".join(["", *lines, "", *_ending(entries[0].name, url, needs_key, use)])


def _ending(name: str, url: str, needs_key: bool, use: "ModelUse") -> list[str]:
    places = [("API", f"{url}/v1"), ("docs", f"{url}/docs")]
    if use == "generation":
        places.insert(0, ("page", f"{url}/"))
    shown = [f"  {label:<9} {place}" for label, place in places]
    curl = curl_line(name, url, needs_key, use)
    key = f" (put an API key into {KEY_VARIABLE} first: export {KEY_VARIABLE}=…)"
    hint = f"Try{key if needs_key else ''}:"
    return ["Ready.", *shown, "", hint, "", curl, ""]


def _ranks_text(model: "ModelInfo") -> str:
    return f" on each of {model.num_ranks} ranks" if model.num_ranks > 1 else ""


def _generation_rows(model: "ModelInfo") -> dict[str, str]:
    return {
        "KV cache": f"{model.kv_capacity_tokens:,} tokens in "
        + size_text(model.kv_capacity_tokens * model.kv_bytes_per_token),
        "context": f"{model.max_model_len:,} tokens; "
        f"{model.kv_capacity_tokens / model.max_model_len:.1f} requests of full length fit",
    }


def _embedding_rows(model: "ModelInfo") -> dict[str, str]:
    """What the embeddings are like; empty if the model makes none."""
    info = model.embedding
    if info is None:
        return {}
    length = "length 1" if info.is_normalized else "not normalised"
    rows = {"vectors": f"{info.size} dimensions, pooling {info.pooling}, {length}"}
    if not model.generates:
        rows["texts"] = f"up to {model.max_model_len:,} tokens"
    if info.prompts:
        default = f" (default: {info.default_prompt})" if info.default_prompt else ""
        rows["prompts"] = ", ".join(info.prompts) + default
    return rows


def _ranking_rows(model: "ModelInfo") -> dict[str, str]:
    """What the scores are like; empty if the model is no reranker."""
    info = model.ranking
    if info is None:
        return {}
    rows = {"scores": info.activation, "pairs": f"up to {model.max_model_len:,} tokens"}
    return rows | ({"prompt": repr(info.prompt)} if info.prompt else {})


def _speech_rows(model: "ModelInfo") -> dict[str, str]:
    """What the model transcribes; empty if that is not what it is for."""
    info = model.speech
    if info is None:
        return {}
    languages = f"{len(info.languages)} languages" if info.languages else "English only"
    return {"speech": f"{languages}, {'with' if info.has_words else 'without'} times of words"}


def _media_rows(name: str, info: object, refusal: str, limit: str) -> dict[str, str]:
    """Whether prompts may have images, audio or videos; empty for a model that cannot take them."""
    if info is not None:
        return {name: limit}
    return {name: f"none: {refusal}"} if refusal else {}


def _sampling_text(model: "ModelInfo") -> str:
    """The parameters that the model's makers recommend; empty if there are none."""
    values = asdict(model.sampling_defaults)
    return ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)


def curl_line(name: str, url: str, needs_key: bool, use: "ModelUse" = "generation") -> str:
    """A curl command for a POSIX shell that sends a request for what the model does."""
    path, fields = FIRST_REQUESTS[use]
    # Without the variable, the shell prints the text in place of running the command.
    secret = f"${{{KEY_VARIABLE}:?put an API key into this variable}}"
    key = f' -H "Authorization: Bearer {secret}"' if needs_key else ""
    if use == "transcription":
        return f"curl {url}/v1/{path}{key} -F file=@speech.wav -F {shlex.quote(f'model={name}')}"
    body = shlex.quote(json.dumps({"model": name, **fields}))
    return f"curl {url}/v1/{path}{key} -H 'Content-Type: application/json' -d {body}"
