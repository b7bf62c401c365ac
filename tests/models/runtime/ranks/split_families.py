"""One of several ranks that split a tiny model of each type, and compare its logits with the whole.

`python -m tests.models.runtime.ranks.split_families RANK NUM_RANKS PORT FOLDER TYPE…` writes to
FOLDER. Rank 0 prints a line for each type: its name, a tab, and `ok` or what is wrong.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig

from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.kinds import stateful_model
from stonechat_models.backends.transformers.loading.split import (
    refuse_whole_weights,
    splits_keys,
    splits_layers,
    splits_of,
    uneven_weights,
)
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.verify import random_batch, random_prompts
from stonechat_models.runtime.ranks.group import TIMEOUT, join_group
from tests.models import every_family
from tests.models.engines import model_info

VOCAB_SIZE = 256
TOLERANCE = 1e-4
"""In standard deviations of the logits."""
LENGTHS = [21, 18]
"""Longer than the windows of the tiny models."""


def main(rank: int, num_ranks: int, port: int, folder: Path, types: list[str]) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, num_ranks, is_master=rank == 0, timeout=TIMEOUT)
    join_group(store, rank, num_ranks, torch.device("cpu"))
    every_family.SIZES.update(vocab_size=VOCAB_SIZE, vocab_size_per_layer_input=VOCAB_SIZE)
    for model_type in types:
        try:
            verdict = compare(model_type, folder / model_type, rank, num_ranks)
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"
        verdicts: list[str] = [""] * num_ranks
        dist.all_gather_object(verdicts, verdict)
        if rank == 0:
            wrong = {text for text in verdicts if text != "ok"}
            print(model_type, "; ".join(sorted(wrong)) or "ok", sep="\t", flush=True)


def compare(model_type: str, folder: Path, rank: int, num_ranks: int) -> str:
    whole = every_family.tiny_model(model_type)
    if rank == 0:
        whole.save_pretrained(folder)  # type: ignore[operator]
    dist.barrier()
    split = (
        type(whole)
        .from_pretrained(  # type: ignore[attr-defined]
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            distributed_config=DistributedConfig(tp_size=num_ranks),
        )
        .eval()
    )
    splits = splits_of(split)
    if problems := list(uneven_weights(splits, num_ranks)):
        return problems[0]
    if not splits_layers(splits):
        return "its layers are not split"
    refuse_whole_weights(split, num_ranks)
    for name, part in split.named_parameters():
        local = part.to_local() if hasattr(part, "to_local") else part
        if name not in splits and local.numel() != part.numel():
            return f"{name} is split, which was not expected"
    info = model_info(vocab_size=VOCAB_SIZE)
    if stateful_model(whole, info, BatchedBackend(), torch.float32) is not None:
        return "it keeps a state"
    model = TransformersModel(split, info, BatchedBackend())
    model.allocate_kv_cache(32, 4)
    num_kv = model.info.kv_bytes_per_token * (num_ranks if splits_keys(splits) else 1)
    if num_kv != TransformersModel(whole, info, BatchedBackend()).info.kv_bytes_per_token:
        return "the KV cache is not split as expected"
    return _largest_difference(model, whole)


@torch.inference_mode()
def _largest_difference(model: TransformersModel, whole: torch.nn.Module) -> str:
    """Compare a prefill and the step after it with the whole model's own attention."""
    prompts = random_prompts(LENGTHS, VOCAB_SIZE).token_ids.split(LENGTHS)
    whole.set_attn_implementation("eager")  # type: ignore[operator]
    expected = [whole(input_ids=ids[None], use_cache=False).logits[0] for ids in prompts]
    deviation = torch.cat(expected).std()
    worst = 0.0
    for lengths in ([(n - 1, n - 1) for n in LENGTHS], [(1, n) for n in LENGTHS]):
        batch = random_batch(lengths, 4)
        blocks = random_batch([(n, n) for n in LENGTHS], 4).block_table
        batch.block_table = blocks[:, : batch.block_table.shape[1]]
        starts = [context - queries for queries, context in lengths]
        batch.token_ids = torch.cat(
            [
                ids[start:context]
                for ids, start, (_, context) in zip(prompts, starts, lengths, strict=True)
            ]
        )
        rows = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor([q for q, _ in lengths]))
        batch.slot_mapping = (
            batch.block_table[rows, batch.positions // 4].long() * 4 + batch.positions % 4
        )
        actual = model.forward(batch)
        rows_expected = torch.stack(
            [logits[context - 1] for logits, (_, context) in zip(expected, lengths, strict=True)]
        )
        worst = max(worst, float((actual - rows_expected).abs().max() / deviation))
    return "ok" if worst < TOLERANCE else f"logits are off by {worst:.2g} standard deviations"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
