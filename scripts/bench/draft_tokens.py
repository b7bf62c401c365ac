"""Measure what guessed tokens gain: a right and a wrong prediction, and `--prompt-lookup`.

The engine alone (no HTTP) answers a prompt that holds a Python file three times. A right prediction
is the plain answer itself, a wrong one shares nothing with it. Says whether the answers and their
log-probabilities are the same to the bit. Example:

    python scripts/bench/draft_tokens.py --concurrency 1 8 32
"""

import argparse
import sys
import time
from collections.abc import Sequence

from stonechat_models import EngineConfig, GenerateRequest, SamplingParams
from stonechat_models.engine.engine import Engine
from stonechat_models.runtime.build import build_engine

OUTPUT_TOKENS = 200
SOURCE = """def total(items):
    result = 0
    for item in items:
        result += item.price * item.count
    return result


def names(items):
    return [item.name for item in items]
"""
PROMPT = (
    "<|im_start|>user\nRename item to product in this code and give it all:\n```python\n"
    f"{SOURCE * 3}```<|im_end|>\n<|im_start|>assistant\n"
)

Answers = list[list[tuple[int, float]]]
"""Tokens and their log-probabilities, a list a request."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    engines = []
    for lookup in (False, True):
        config = EngineConfig(model=arguments.model, prompt_lookup=lookup, prefix_caching=False)
        engine, tokenizer = build_engine(config, lambda line: print(line, file=sys.stderr))
        engines.append(engine)
    prompt = tokenizer.encode(PROMPT)
    wrong = [7 + i % 50 for i in range(OUTPUT_TOKENS)]
    for engine in engines:
        answer(engine, prompt, 1, 0.0)
    print("requests  temperature  plain  right  wrong  lookup  (tokens a second)  same bits")
    for num_requests in arguments.concurrency:
        for temperature in (0.0, 0.8):
            plain, speed = answer(engines[0], prompt, num_requests, temperature)
            right = [[token for token, _ in tokens] for tokens in plain]
            others = [
                answer(engines[0], prompt, num_requests, temperature, right),
                answer(engines[0], prompt, num_requests, temperature, [wrong] * num_requests),
                answer(engines[1], prompt, num_requests, temperature),
            ]
            speeds = "  ".join(f"{rate:5.0f}" for rate in (speed, *(rate for _, rate in others)))
            same = all(found == plain for found, _ in others)
            print(f"{num_requests:8}  {temperature:11}  {speeds}  {same}")


def answer(
    engine: Engine,
    prompt: Sequence[int],
    num_requests: int,
    temperature: float,
    predictions: Sequence[Sequence[int]] = (),
) -> tuple[Answers, float]:
    """What requests that start together get, and the tokens a second of all of them."""
    for i in range(num_requests):
        params = SamplingParams(
            temperature=temperature,
            seed=i,
            max_tokens=OUTPUT_TOKENS,
            ignore_eos=True,
            top_logprobs=0,
        )
        request = GenerateRequest(
            request_id=str(i),
            prompt_token_ids=[*prompt, i],
            params=params,
            prediction_token_ids=tuple(predictions[i]) if predictions else (),
        )
        engine.add(request)
    answers: Answers = [[] for _ in range(num_requests)]
    started = time.perf_counter()
    while engine.has_work:
        for output in engine.step():
            logprobs = [entry.logprob for entry in output.logprobs or ()]
            answers[int(output.request_id)] += zip(output.token_ids, logprobs, strict=True)
    return answers, num_requests * OUTPUT_TOKENS / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
