"""Engines with tiny models, and plain `transformers` as the reference for their tokens."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.kinds import plain_model, stateful_model
from stonechat_models.backends.transformers.lora.serve import serve_adapters
from stonechat_models.backends.transformers.media_checks.audio import audio_case, with_audio
from stonechat_models.backends.transformers.media_checks.images import image_case, with_images
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.backends.transformers.recurrent import RecurrentModel
from stonechat_models.engine.batch import place_of
from stonechat_models.engine.engine import Engine
from stonechat_models.engine.overlapped import OverlappedEngine
from stonechat_models.engine.speculation.draft_model import DraftModel
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.model_info import ModelInfo
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.types import GenerateRequest, SamplingParams, TokenLogprobs
from tests.models.tiny_models import PLAIN_FAMILIES, VOCAB_SIZE

CPU = torch.device("cpu")


def model_info(**changes) -> ModelInfo:
    fields = {
        "name": "tiny",
        "architecture": "tiny",
        "vocab_size": VOCAB_SIZE,
        "max_model_len": 128,
        "device": "cpu",
        "dtype": "float32",
        "quantization": "none",
        "backend": "transformers",
        "attention_backend": "sdpa",
        "num_parameters": 0,
        "weight_bytes": 0,
        "weights_hash": "",
        "block_size": 4,
        "num_blocks": 0,
        "kv_bytes_per_token": 0,
        "max_batch_tokens": 64,
        "max_num_seqs": 16,
        "threads": 1,
    }
    return ModelInfo(**{**fields, **changes})


def make_engine(
    module,
    backend=None,
    *,
    num_blocks=128,
    prefix_caching=True,
    eos=frozenset(),
    row_multiple=1,
    probe=None,
    kv_dtype=None,
    overlap=False,
    prompt_lookup="off",
    clock=time.perf_counter,
    draft_module=None,
    num_draft_tokens=4,
    adapters=(),
    media=False,
    audio_processor="",
    media_cache_bytes=1 << 20,
    **limits,
):
    info = model_info(**limits)
    case = image_case(module) if media else ""
    heard = audio_case(module, audio_processor) if audio_processor else ""
    backend = backend or BatchedBackend()
    model = stateful_engine_model(module, info, backend) or TransformersModel(
        module, info, backend, row_multiple, probe, kv_dtype
    )
    if adapters:
        model.info = replace(model.info, adapters=serve_adapters(model, adapters, torch.float32))
    model.info = with_images(model, case)
    if audio_processor:
        model.info = with_audio(model, heard)
    model.allocate_kv_cache(num_blocks, info.block_size)
    engine_class = OverlappedEngine if overlap else Engine
    sampler, draft_model = Sampler(info.vocab_size, CPU), None
    if draft_module is not None:
        draft_info = replace(info, vocab_size=draft_module.config.vocab_size)
        draft_model = DraftModel(
            TransformersModel(draft_module, draft_info, BatchedBackend(), 1, None, None),
            sampler,
            vocab_size=info.vocab_size,
            end_ids=eos,
            max_tokens=num_draft_tokens,
            place=place_of(CPU),
            takes_tensors=True,
            clock=clock,
        )
        draft_model.model.allocate_kv_cache(num_blocks, info.block_size)
    return engine_class(
        model,
        sampler,
        eos_token_ids=eos,
        device=CPU,
        prefix_caching=prefix_caching,
        prompt_lookup=prompt_lookup,
        clock=clock,
        draft_model=draft_model,
        media_cache_bytes=media_cache_bytes,
    )


def stateful_engine_model(module, info, backend) -> RecurrentModel | PlainModel | None:
    """The model of an engine if the paged cache alone cannot serve it; else None."""
    family = module.config.model_type
    if family in PLAIN_FAMILIES:
        reason = UnsupportedModelError("the test says so")
        model = plain_model(module, info, reason, lambda line: None)
    else:
        model = stateful_model(module, info, backend, torch.float32)
        if model is None:
            return None
    is_plain = model.info.backend == "plain"
    num_snapshots = 6 if model.info.state_bytes and not is_plain else 0
    model.info = replace(model.info, num_state_slots=info.max_num_seqs + num_snapshots)
    return model


@dataclass
class Generated:
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


def greedy(max_tokens: int, **changes) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, top_logprobs=5, **changes)


def add(
    engine,
    request_id,
    prompt,
    params,
    constraints=(),
    prediction=(),
    adapter="",
    media=(),
    priority=0,
):
    engine.add(
        GenerateRequest(
            request_id=request_id,
            prompt_token_ids=prompt,
            params=params,
            prediction_token_ids=prediction,
            adapter=adapter,
            media=media,
            priority=priority,
        ),
        constraints,
    )


def run(engine, limit=2000) -> dict[tuple[str, int], Generated]:
    """Step until all requests end. Return the results by (request id, choice)."""
    results: dict[tuple[str, int], Generated] = {}
    for _ in range(limit):
        if not engine.has_work:
            return results
        for output in engine.step():
            result = results.setdefault((output.request_id, output.index), Generated([], []))
            result.token_ids += output.token_ids
            result.logprobs += output.logprobs or ()
            result.finish_reason = output.finish_reason
            result.error = output.error
            result.num_cached_tokens = output.num_cached_tokens
            if output.prompt_logprobs is not None:
                assert result.prompt_logprobs is None, "they come once"
                result.prompt_logprobs = output.prompt_logprobs
        engine.scheduler.check_integrity()
    raise AssertionError("the engine did not finish its requests")


def generate_all(engine, prompts: Sequence[list[int]], params: SamplingParams) -> list[Generated]:
    for i, prompt in enumerate(prompts):
        add(engine, str(i), prompt, params)
    results = run(engine)
    return [results[str(i), 0] for i in range(len(prompts))]


@torch.inference_mode()
def reference_prompt(module, prompt: list[int]) -> torch.Tensor:
    """Return float64[len(prompt) - 1, V]: the log-probabilities at all tokens but the first."""
    implementation = module.config._attn_implementation
    module.set_attn_implementation("eager")
    logits = module(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, :-1]
    module.set_attn_implementation(implementation)
    return torch.log_softmax(logits.double(), dim=-1)


@torch.inference_mode()
def reference_greedy(module, prompt: list[int], num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Return greedy tokens and the log-probabilities [num_tokens, V]: one full pass per token."""
    module.set_attn_implementation("eager")
    token_ids, rows = list(prompt), []
    for _ in range(num_tokens):
        logits = module(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1]
        rows.append(torch.log_softmax(logits.double(), dim=-1))
        token_ids.append(int(logits.argmax()))
    return token_ids[len(prompt) :], torch.stack(rows)


@torch.inference_mode()
def reference_of(module, prompt: list[int], token_ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """Return the likeliest token after each prefix and the log-probabilities [num_tokens, V].

    One full pass over prompt and answer: `token_ids` are the greedy ones if they equal the result.
    """
    module.set_attn_implementation("eager")
    ids = torch.tensor([prompt + token_ids[:-1]])
    logits = module(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.argmax(dim=-1).tolist(), torch.log_softmax(logits.double(), dim=-1)


@torch.inference_mode()
def deviations(module, prompt: list[int], result: Generated) -> torch.Tensor:
    """How far greedy results are from plain `transformers`, for each token.

    The unit is the standard deviation of the reference's logits. The reference sees the tokens of
    the result, so a near tie that falls the other way does no harm. Counts are the errors of the
    log-probabilities that `result` has, and how far the chosen token is below the best one.
    """
    implementation = module.config._attn_implementation
    module.set_attn_implementation("eager")
    ids = torch.tensor([prompt + result.token_ids[:-1]])
    logits = module(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].double()
    module.set_attn_implementation(implementation)
    rows = torch.log_softmax(logits, dim=-1)
    errors = []
    for row, token_id, entry in zip(rows, result.token_ids, result.logprobs, strict=True):
        expected = row[[entry.token_id, *entry.top_ids]]
        actual = torch.tensor([entry.logprob, *entry.top_logprobs]).double()
        assert entry.token_id == token_id
        errors.append(max((expected - actual).abs().max(), (row.max() - row[token_id]) / 2))
    return torch.stack(errors) / logits.std(dim=-1)
