"""Measure what each quantised form of one model costs, and what our arithmetic adds to that.

The forms are GGUF files that were made of the same original. Each runs twice over one text: in
float32 with its weights dequantised (the model's own PyTorch code), and on the compiled path. The
first against the original says what the form costs; the second against the first says what the
compiled path adds. `--scratch` keeps the original's logits, so that each form can run by itself:

    python scripts/bench/quality_forms.py original.gguf q4_k_m.gguf q6_k.gguf --scratch /tmp/logits
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf
import torch
from quality import BLOCK_SIZE, TEXT, WINDOW, compare, logits_of, model_of, reference_logits, report

from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.text.tokenizer import Tokenizer

Logits = list[torch.Tensor]

HEAD = (
    "| form | types, share of the weights | file, MB | in memory, MB | perplexity in float32 "
    "| mean KL to the original | compiled: perplexity | mean KL | largest KL | same most likely |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("forms", type=Path, nargs="*")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, help="use only so many tokens of the text")
    parser.add_argument("--scratch", type=Path, help="folder that keeps the original's logits")
    arguments = parser.parse_args()
    windows = read_windows(arguments.original, arguments.text, arguments.tokens)
    original = original_logits(arguments.original, windows, arguments.scratch)
    perplexity = compare(windows, original, original).perplexity
    print(f"original {arguments.original.name}: perplexity {perplexity:.4f} in float32\n\n{HEAD}")
    for path in arguments.forms:
        expected = original
        if path != arguments.original:
            expected = original_logits(path, windows, None)
        print(form_row(path, windows, original, expected), flush=True)


def form_row(path: Path, windows: list[list[int]], original: Logits, expected: Logits) -> str:
    """The line of one form, whose logits in float32 are `expected`."""
    form = compare(windows, original, expected)
    model = model_of(config_of(path))
    own = compare(windows, expected, [logits_of(model, w) for w in windows])
    cells = [
        *(path.stem, type_shares(path), f"{path.stat().st_size / 1e6:.0f}"),
        *(f"{model.info.weight_bytes / 1e6:.0f}", f"{form.perplexity:.3f}", f"{form.mean_kl:.4f}"),
        *(f"{own.perplexity:.3f} ({own.perplexity / form.perplexity - 1:+.2%})",),
        *(f"{own.mean_kl:.5f}", f"{own.largest_kl:.3f}", f"{own.same_argmax:.1%}"),
    ]
    return f"| {' | '.join(cells)} |"


def config_of(path: Path) -> EngineConfig:
    return EngineConfig(
        model=str(path),
        device="cpu",
        backend="native",
        max_model_len=WINDOW + BLOCK_SIZE,
        max_num_seqs=1,
    )


def read_windows(path: Path, text: Path, num_tokens: int | None) -> list[list[int]]:
    files = resolve_model(config_of(path), report)
    ids = Tokenizer.from_folder(files.folder).encode(text.read_text(encoding="utf-8"))[:num_tokens]
    return [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]


def original_logits(path: Path, windows: list[list[int]], scratch: Path | None) -> Logits:
    """The logits of a file in float32, from `scratch` if they are there."""
    kept = scratch / f"{path.stem}-{sum(map(len, windows))}.pt" if scratch else None
    if kept is not None and kept.exists():
        return list(torch.load(kept, mmap=True))
    config = replace(config_of(path), backend="transformers")
    logits = [w.float() for w in reference_logits(resolve_model(config, report), config, windows)]
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(logits, kept)
    return logits


def type_shares(path: Path) -> str:
    """The types of a file's matrices, by the share of the weights that they hold."""
    weights: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
    total = weights.total()
    return ", ".join(f"{name} {count / total:.0%}" for name, count in weights.most_common())


if __name__ == "__main__":
    main()
