"""Measure what draft tokens gain: a right and a wrong prediction, and `--prompt-lookup`.

The engine alone (no HTTP) answers a prompt that holds a Python file three times. A right prediction
is the plain answer itself; a wrong one shares nothing with it. The last column says whether all
answers and log-probabilities have the same bits as the plain ones. Example:

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
"""Per request, a list of its tokens with their log-probabilities."""


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
    print("tokens a second\nrequests  temperature  plain  right  wrong  lookup  same bits")
    for num_requests in arguments.concurrency:
        for temperature in (0.0, 0.8):
            plain, rate = answer(engines[0], prompt, num_requests, temperature)
            right = [[token for token, _ in tokens] for tokens in plain]
            runs = [
                answer(engines[0], prompt, num_requests, temperature, right),
                answer(engines[0], prompt, num_requests, temperature, [wrong] * num_requests),
                answer(engines[1], prompt, num_requests, temperature),
            ]
            rates = "  ".join(f"{value:5.0f}" for value in (rate, *(value for _, value in runs)))
            is_same = all(answers == plain for answers, _ in runs)
            print(f"{num_requests:8}  {temperature:11}  {rates}  {is_same}")


def answer(
    engine: Engine,
    prompt: Sequence[int],
    num_requests: int,
    temperature: float,
    predictions: Sequence[Sequence[int]] = (),
) -> tuple[Answers, float]:
    """Run requests that start together. Return their answers, and tokens a second over all."""
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
