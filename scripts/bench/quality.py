"""Measure what quantisation costs: perplexity and KL divergence against float32, on one text.

The reference is the model's own PyTorch code in float32 without a cache; it dequantises the weights
of a GGUF. Each combination of weight precision and KV cache precision is measured once. Examples:

    python scripts/bench/quality.py --model model.gguf --quantize auto int8
    python scripts/bench/quality.py --backend transformers --kv-cache-dtype auto fp8

`--as-on-cuda` measures the layers that a GPU would run, but computes them on this CPU, in bfloat16
and without a cache. It does not offer int4, whose kernels exist for CUDA only.
"""

import argparse
import math
import sys
from array import array
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from stonechat_models.backends.base import CausalModel, ForwardBatch, HostBatch
from stonechat_models.backends.quantization.choose import cuda_linear
from stonechat_models.backends.transformers.pretrained import load_module
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig, Precision
from stonechat_models.engine.engine import Engine
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.build import build_engine
from stonechat_models.text.tokenizer import Tokenizer

TEXT = Path(__file__).parents[2] / "tests" / "data" / "quality_text.txt"
BLOCK_SIZE = 16
WINDOW = 1024
CHUNK = 64
"""Positions compared at a time, which bounds the memory for large vocabularies."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures over all positions that predict a token of the text."""

    perplexity: float
    mean_kl: float
    largest_kl: float
    same_argmax: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--quantize", nargs="+", default=["auto"])
    parser.add_argument("--backend", default="native", choices=("native", "transformers"))
    parser.add_argument("--kv-cache-dtype", nargs="+", default=["auto"])
    parser.add_argument("--as-on-cuda", nargs="+", default=[], choices=("none", "int8", "fp8"))
    parser.add_argument("--text", type=Path, default=TEXT)
    arguments = parser.parse_args()
    base_config = EngineConfig(
        model=arguments.model,
        device="cpu",
        backend=arguments.backend,
        max_model_len=WINDOW,
        max_num_seqs=1,
    )
    files = resolve_model(base_config, report)
    ids = Tokenizer.from_folder(files.folder).encode(arguments.text.read_text(encoding="utf-8"))
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    expected = [w.float() for w in reference_logits(files, base_config, windows)]
    print(f"{files.name}, {len(ids)} tokens in windows of {WINDOW}, {arguments.backend}\n")
    print("| weights | KV cache | perplexity | change | mean KL | largest KL | same argmax |")
    print("|---|---|---|---|---|---|---|")
    reference = compare(windows, expected, expected)
    print(f"| float32 (reference) | none | {reference.perplexity:.4f} | | | | |")
    for quantize, kv_cache_dtype in product(arguments.quantize, arguments.kv_cache_dtype):
        config = replace(base_config, quantize=quantize, kv_cache_dtype=kv_cache_dtype)
        try:
            model = model_of(config)
        except ModelLoadError as error:
            print(f"| {quantize}: {error} | {kv_cache_dtype} | | | | | |")
            continue
        quality = compare(windows, expected, [logits_of(model, w) for w in windows])
        print(row(f"{model.info.quantization} ({quantize})", kv_cache_dtype, quality, reference))
    for precision in arguments.as_on_cuda:
        quality = compare(windows, expected, cuda_logits(files, base_config, windows, precision))
        print(row(f"{precision} (bfloat16, as on CUDA)", "none", quality, reference))


def row(weights: str, kv_cache: str, quality: Quality, reference: Quality) -> str:
    change = quality.perplexity / reference.perplexity - 1
    return (
        f"| {weights} | {kv_cache} | {quality.perplexity:.4f} | {change:+.2%} "
        f"| {quality.mean_kl:.5f} | {quality.largest_kl:.3f} | {quality.same_argmax:.1%} |"
    )


def report(line: str) -> None:
    print(line, file=sys.stderr)


def model_of(config: EngineConfig) -> CausalModel:
    """Load a model that generates text."""
    engine, _ = build_engine(config, report)
    assert isinstance(engine, Engine), "the model makes embeddings only"
    return engine.model


def reference_logits(
    files: ModelFiles, config: EngineConfig, windows: list[list[int]]
) -> list[torch.Tensor]:
    module = load_module(files, config, torch.device("cpu"), torch.float32, progress=report)
    with torch.inference_mode():
        return [module(torch.tensor([w]), use_cache=False).logits[0] for w in windows]


def cuda_logits(
    files: ModelFiles, config: EngineConfig, windows: list[list[int]], precision: str
) -> list[torch.Tensor]:
    module = load_module(files, config, torch.device("cpu"), torch.bfloat16, progress=report)
    head = cast(Any, module).get_output_embeddings()
    linears = [(n, m) for n, m in module.named_modules() if type(m) is nn.Linear and m is not head]
    for name, linear in linears if precision != "none" else ():
        layer = cuda_linear(linear.weight, linear.bias, cast(Precision, precision))
        if layer is not None:
            module.set_submodule(name, layer)
    with torch.inference_mode():
        return [module(torch.tensor([w]), use_cache=False).logits[0] for w in windows]


def logits_of(model: CausalModel, ids: list[int]) -> torch.Tensor:
    num_blocks = math.ceil(len(ids) / BLOCK_SIZE)
    model.allocate_kv_cache(num_blocks, BLOCK_SIZE)
    if model.info.backend == "native":
        places = array("q", range(len(ids)))
        blocks = array("i", range(num_blocks))
        starts = array("i", [0, len(ids)])
        step = HostBatch(array("q", ids), places, places, starts, blocks, places, array("q"))
        return torch.from_numpy(model.forward(step))
    positions = torch.arange(len(ids))
    batch = ForwardBatch(
        token_ids=torch.tensor(ids),
        positions=positions,
        slot_mapping=positions,
        query_start=torch.tensor([0, len(ids)], dtype=torch.int32),
        context_lens=torch.tensor([len(ids)], dtype=torch.int32),
        block_table=torch.arange(num_blocks, dtype=torch.int32).unsqueeze(0),
        logits_index=positions,
        query_start_list=[0, len(ids)],
        context_lens_list=[len(ids)],
    )
    logits: torch.Tensor = model.forward(batch)
    return logits


def compare(
    windows: list[list[int]], expected: list[torch.Tensor], actual: list[torch.Tensor]
) -> Quality:
    losses, kls, same = [], [], []
    for ids, reference, logits in zip(windows, expected, actual, strict=True):
        for first in range(0, len(ids) - 1, CHUNK):
            chunk = slice(first, min(first + CHUNK, len(ids) - 1))
            targets = torch.tensor(ids[chunk.start + 1 : chunk.stop + 1]).unsqueeze(1)
            log_p = torch.log_softmax(reference[chunk].double(), -1)
            log_q = torch.log_softmax(logits[chunk].double(), -1)
            losses.append(-log_q.gather(1, targets).squeeze(1))
            kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
            same.append(log_p.argmax(-1) == log_q.argmax(-1))
    kl = torch.cat(kls)
    return Quality(
        perplexity=float(torch.cat(losses).mean().exp()),
        mean_kl=float(kl.mean()),
        largest_kl=float(kl.max()),
        same_argmax=float(torch.cat(same).double().mean()),
    )


if __name__ == "__main__":
    main()
