"""Measure what quantisation costs: perplexity and KL divergence against float32, on one text.

Each model runs in float32 first: its own PyTorch code, without a cache, with the weights of a GGUF
dequantised. Then it runs in each combination of weight precision and KV cache precision. With
`--original`, the float32 of that file is also compared with the float32 of each model, which says
what a quantised form of it costs. Examples:

    python scripts/bench/quality.py --model model.gguf --quantize auto int8
    python scripts/bench/quality.py --backend transformers --kv-cache-dtype auto fp8
    python scripts/bench/quality.py --original f16.gguf --model q4_k_m.gguf q6_k.gguf

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

from stonechat_models.backends.base import CausalModel, HostBatch
from stonechat_models.backends.quantization.choose import cuda_linear
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.backends.transformers.verify import packed_batch
from stonechat_models.checkpoint.resolve import resolve_model
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
COLUMNS = ("model", "weights", "KV cache", "in memory, MB", "perplexity", "change", "mean KL",
           "largest KL", "same argmax")  # fmt: skip

Windows = list[list[int]]
Logits = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures over all positions that predict a token of the text."""

    perplexity: float
    mean_kl: float
    largest_kl: float
    same_argmax: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", nargs="+", default=["default"])
    parser.add_argument("--original", help="the model of which the others are quantised forms")
    parser.add_argument("--quantize", nargs="+", default=["auto"])
    parser.add_argument("--backend", default="native", choices=("native", "transformers"))
    parser.add_argument("--kv-cache-dtype", nargs="+", default=["auto"])
    parser.add_argument("--as-on-cuda", nargs="+", default=[], choices=("none", "int8", "fp8"))
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, help="use only so many tokens of the text")
    arguments = parser.parse_args()
    settings = EngineConfig(
        model=arguments.original or arguments.model[0],
        device="cpu",
        backend=arguments.backend,
        max_model_len=WINDOW,
        max_num_seqs=1,
    )
    windows = read_windows(settings, arguments.text, arguments.tokens)
    print(f"{sum(map(len, windows))} tokens in windows of {WINDOW}, {arguments.backend}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    original = in_float32(settings, windows) if arguments.original else None
    if original is not None:
        show(settings.model, "float32", "none", "", compare(windows, original, original), None)
    for name in arguments.model:
        measure(replace(settings, model=name), arguments, windows, original)


def measure(
    base: EngineConfig, arguments: argparse.Namespace, windows: Windows, original: Logits | None
) -> None:
    """Print the rows of a model: in float32, then in each precision."""
    expected = in_float32(base, windows)
    reference = compare(windows, expected if original is None else original, expected)
    show(base.model, "float32", "none", "", reference, None)
    for quantize, kv_cache_dtype in product(arguments.quantize, arguments.kv_cache_dtype):
        config = replace(base, quantize=quantize, kv_cache_dtype=kv_cache_dtype)
        try:
            model = model_of(config)
        except ModelLoadError as error:
            print(f"| {base.model} | {quantize}: {error} | {kv_cache_dtype} |")
            continue
        quality = compare(windows, expected, [logits_of(model, ids) for ids in windows])
        size, weights = f"{model.info.weight_bytes / 1e6:.0f}", model.info.quantization
        show(base.model, f"{weights} ({quantize})", kv_cache_dtype, size, quality, reference)
    for precision in arguments.as_on_cuda:
        quality = compare(windows, expected, cuda_logits(base, windows, precision))
        show(base.model, f"{precision}, as on CUDA", "none", "", quality, reference)


def show(
    model: str, weights: str, kv_cache: str, size: str, quality: Quality, float32: Quality | None
) -> None:
    change = "" if float32 is None else f"{quality.perplexity / float32.perplexity - 1:+.2%}"
    figures = (f"{quality.mean_kl:.5f}", f"{quality.largest_kl:.3f}", f"{quality.same_argmax:.1%}")
    cells = (Path(model).stem, weights, kv_cache, size, f"{quality.perplexity:.4f}", change)
    print(f"| {' | '.join([*cells, *figures])} |", flush=True)


def report(line: str) -> None:
    print(line, file=sys.stderr)


def read_windows(config: EngineConfig, text: Path, num_tokens: int | None) -> Windows:
    tokenizer = Tokenizer.from_folder(resolve_model(config, report).folder)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))[:num_tokens]
    return [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]


def model_of(config: EngineConfig) -> CausalModel:
    """Load a model that generates text."""
    engine, _ = build_engine(config, report)
    assert isinstance(engine, Engine), "the model makes embeddings only"
    return engine.model


def own_module(config: EngineConfig, dtype: torch.dtype) -> nn.Module:
    """Load the model's own PyTorch code."""
    files, device = resolve_model(config, report), torch.device("cpu")
    return load_module(files, config, device, dtype, progress=report)


@torch.inference_mode()
def own_logits(module: nn.Module, windows: Windows) -> Logits:
    return [module(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in windows]


def in_float32(config: EngineConfig, windows: Windows) -> Logits:
    return own_logits(own_module(config, torch.float32), windows)


def cuda_logits(config: EngineConfig, windows: Windows, precision: str) -> Logits:
    module = own_module(config, torch.bfloat16)
    head = cast(Any, module).get_output_embeddings()
    linears = [(n, m) for n, m in module.named_modules() if type(m) is nn.Linear and m is not head]
    for name, linear in linears if precision != "none" else ():
        layer = cuda_linear(linear.weight, linear.bias, cast(Precision, precision))
        if layer is not None:
            module.set_submodule(name, layer)
    return own_logits(module, windows)


def logits_of(model: CausalModel, ids: list[int]) -> torch.Tensor:
    num_blocks = math.ceil(len(ids) / BLOCK_SIZE)
    model.allocate_kv_cache(num_blocks, BLOCK_SIZE)
    if model.info.backend == "native":
        places = array("q", range(len(ids)))
        blocks = array("i", range(num_blocks))
        starts = array("i", [0, len(ids)])
        step = HostBatch(array("q", ids), places, places, starts, blocks, places, array("q"))
        return torch.from_numpy(model.forward(step))
    part = (torch.tensor(ids), 0, torch.arange(num_blocks, dtype=torch.int32))
    logits: torch.Tensor = model.forward(packed_batch([part], BLOCK_SIZE, [-1], all_rows=True))
    return logits


def compare(windows: Windows, expected: Logits, actual: Logits) -> Quality:
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
