"""Measure what quantisation costs: perplexity and KL divergence against float32, on one text.

The reference is the model's own PyTorch code in float32, with a GGUF's weights dequantised. The
compiled path is measured once for each way of keeping the weights. Example:

    python scripts/quality.py --model model.gguf --quantize auto int8
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.forward_batch import ForwardBatch
from stonechat_models.loader import ModelFiles, load_module, resolve_model
from stonechat_models.native import NativeModel, supports
from stonechat_models.tokenizer import Tokenizer

TEXT = Path(__file__).parent.parent / "tests" / "data" / "quality_text.txt"
BLOCK_SIZE = 16
WINDOW = 1024


@dataclass(frozen=True, slots=True)
class Quality:
    """Over all positions that predict a token of the text."""

    perplexity: float
    mean_kl: float
    largest_kl: float
    same_argmax: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--quantize", nargs="+", default=["auto"])
    parser.add_argument("--text", type=Path, default=TEXT)
    arguments = parser.parse_args()
    config = EngineConfig(model=arguments.model, device="cpu")
    files = resolve_model(config, report)
    ids = Tokenizer.from_folder(files.folder).encode(arguments.text.read_text(encoding="utf-8"))
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    expected = [w.float() for w in reference_logits(files, config, windows)]
    print(f"{files.name}, {len(ids)} tokens in windows of {WINDOW}\n")
    print("| weights | perplexity | against float32 | mean KL | largest KL | same argmax |")
    print("|---|---|---|---|---|---|")
    base = compare(windows, expected, expected)
    print(f"| float32 (transformers) | {base.perplexity:.4f} | | | | |")
    for quantize in arguments.quantize:
        settings = EngineConfig(model=arguments.model, device="cpu", quantize=quantize)
        reason = supports(files, settings)
        if reason is not None:
            print(f"| {quantize}: not compiled ({reason}) | | | | | |")
            continue
        try:
            model = NativeModel.load(files, settings, report)
        except UnsupportedModelError as error:
            print(f"| {quantize}: not compiled ({error}) | | | | | |")
            continue
        found = compare(windows, expected, [native_logits(model, w) for w in windows])
        change = found.perplexity / base.perplexity - 1
        print(
            f"| {model.info.quantization} ({quantize}) | {found.perplexity:.4f} | {change:+.2%} "
            f"| {found.mean_kl:.5f} | {found.largest_kl:.3f} | {found.same_argmax:.1%} |"
        )


def report(line: str) -> None:
    print(line, file=sys.stderr)


def reference_logits(
    files: ModelFiles, config: EngineConfig, windows: list[list[int]]
) -> list[torch.Tensor]:
    module = load_module(files, config, torch.device("cpu"), torch.float32, progress=report)
    with torch.inference_mode():
        return [module(torch.tensor([w]), use_cache=False).logits[0] for w in windows]


def native_logits(model: NativeModel, ids: list[int]) -> torch.Tensor:
    num_blocks = math.ceil(len(ids) / BLOCK_SIZE)
    model.allocate_kv_cache(num_blocks, BLOCK_SIZE)
    positions = torch.arange(len(ids))
    return model.forward(
        ForwardBatch(
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
    )


def compare(
    windows: list[list[int]], expected: list[torch.Tensor], actual: list[torch.Tensor]
) -> Quality:
    losses, kls, same = [], [], []
    for ids, reference, logits in zip(windows, expected, actual, strict=True):
        log_p = torch.log_softmax(reference[:-1].double(), -1)
        log_q = torch.log_softmax(logits[:-1].double(), -1)
        losses.append(-log_q.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1))
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
