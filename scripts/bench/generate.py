"""Time plain `transformers` generate on the weights of a model, one request at a time.

Prints tokens a second of an answer and of a prompt. The engine's, to compare with:

    python scripts/bench/generate.py --model DIR --dtype float32
    stonechat bench --in-process DIR --backend transformers --dtype float32 --concurrency 1,8,32
    stonechat bench --in-process DIR --backend transformers --dtype float32 --pp 1000
"""

import argparse
import sys
import time

import torch

from stonechat_models import EngineConfig
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.hardware.device import choose_device, choose_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt", type=int, default=50, help="tokens before an answer")
    parser.add_argument("--answer", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--prefill", type=int, default=1000, help="tokens of a prompt alone")
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many runs counts")
    arguments = parser.parse_args()
    config = EngineConfig(model=arguments.model, dtype=arguments.dtype, device=arguments.device)
    device = choose_device(config.device)
    files = resolve_model(config, lambda line: print(line, file=sys.stderr))
    dtype = choose_dtype(config.dtype, files.config.dtype, device)
    module = load_module(files, config, device, dtype)
    for num_prompt, num_answer in ((arguments.prompt, arguments.answer), (arguments.prefill, 1)):
        runs = range(arguments.repeats)
        best = min(seconds(module, num_prompt, num_answer, device) for _ in runs)
        num_tokens = num_answer if num_answer > 1 else num_prompt
        what = "answer" if num_answer > 1 else "prompt"
        print(f"{what} of {num_tokens} tokens, {dtype}: {num_tokens / best:.1f} tokens/s")


def seconds(
    module: torch.nn.Module, num_prompt: int, num_answer: int, device: torch.device
) -> float:
    """The time of one call."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1000, 40000, (1, num_prompt), generator=generator).to(device)
    started = time.perf_counter()
    with torch.inference_mode():
        output = module.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_answer,
            min_new_tokens=num_answer,
            do_sample=False,
            pad_token_id=0,
        )
    assert output.shape[1] == num_prompt + num_answer
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
