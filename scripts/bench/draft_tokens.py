"""Measure what draft tokens gain: by themselves, from predictions, and from a draft model.

The engine alone (no HTTP) answers prompts of one kind: questions (`chat`), code to change (`code`),
or a text to repeat (`quote`). The columns: no draft tokens (`plain`), the default of
`--prompt-lookup` (`auto`), with that flag (`on`), with the plain answer as `prediction` (`right`),
with one that shares nothing with it (`wrong`), and with `--draft-model`. The engines take turns,
each figure is the best of its runs, and after it stands the ratio to `plain`. The last column says
whether all answers and log-probabilities had the same bits. Example:

    python scripts/bench/draft_tokens.py --kind code --concurrency 1 8 32
"""

import argparse
import sys
import time
from collections.abc import Sequence

from stonechat_models import EngineConfig, GenerateRequest, SamplingParams
from stonechat_models.engine.engine import Engine
from stonechat_models.runtime.build import build_engine

SOURCE = """def total(items):
    result = 0
    for item in items:
        result += item.price * item.count
    return result


def names(items):
    return [item.name for item in items]
"""
PASSAGE = """The harbour of the town was built in three parts. The oldest part, a basin of granite,
was finished in 1782 and holds forty small boats. The second part followed in 1851, when the railway
came, and has two quays of 300 metres each. The last part is of concrete; it was opened in 1963 for
ships that carry timber and grain."""
PROMPTS = {
    "chat": [
        "What is gravity?",
        "Write a short story about a dragon and a baker.",
        "Give me tips for learning French.",
        "Explain how a computer stores data.",
        "Why is the sky blue?",
        "Write a poem about autumn.",
        "How do I cook rice?",
        "What were the causes of the French revolution?",
    ],
    "code": [
        f"Rename item to product in this code and give it all:\n```python\n{SOURCE * 3}```",
        f"Add a comment to each function and give all the code again:\n```python\n{SOURCE}```",
    ],
    "quote": [
        f"{PASSAGE}\n\nRepeat the whole text.",
        f"Correct the spelling of this text, and give it all: {PASSAGE}",
    ],
}
NUM_RUNS = 2

Answers = list[list[tuple[int, float]]]
"""Per request, a list of its tokens with their log-probabilities."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--draft-model", help="also measure with this draft model")
    parser.add_argument("--kind", choices=PROMPTS, default="code")
    parser.add_argument("--columns", nargs="+", default=["auto", "on", "right", "wrong"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=150, help="tokens of each answer")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    names = ["plain", *bench.columns]
    cells = [f"{name:>12}" for name in names]
    print("tokens a second\nrequests  temperature", *cells, " drafted  accepted  same bits")
    for num_requests in arguments.concurrency:
        for temperature in (0.0, 0.8):
            print(f"{num_requests:8}  {temperature:11}", *bench.row(num_requests, temperature))


class Bench:
    """The engines, and the prompts of one kind."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.columns = [*arguments.columns]
        self._num_tokens = arguments.tokens
        changes: dict[str, dict[str, object]] = {"plain": {"prompt_lookup": False}}
        if "auto" in self.columns:
            changes["auto"] = {}
        if "on" in self.columns:
            changes["on"] = {"prompt_lookup": True}
        if arguments.draft_model:
            self.columns.append("draft model")
            changes["draft model"] = {"draft_model": arguments.draft_model}
        self._engines: dict[str, Engine] = {}
        for name, change in changes.items():
            config = EngineConfig(
                model=arguments.model,
                prefix_caching=False,
                **change,  # type: ignore[arg-type]
            )
            engine, tokenizer = build_engine(config, lambda line: print(line, file=sys.stderr))
            assert isinstance(engine, Engine)
            self._engines[name] = engine
        texts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
                 for text in PROMPTS[arguments.kind]]  # fmt: skip
        self._prompts = [tokenizer.encode(text) for text in texts]
        for engine in self._engines.values():
            self._answer(engine, 1, 0.0)

    def row(self, num_requests: int, temperature: float) -> list[str]:
        """Return the cells of a row of the table."""
        plain: Answers = []
        best: dict[str, float] = {}
        is_same, counts = True, [0, 0]
        for _ in range(NUM_RUNS):
            for name in ("plain", *self.columns):
                predictions: list[list[int]] = []
                if name == "right":
                    predictions = [[token for token, _ in tokens] for tokens in plain]
                elif name == "wrong":
                    predictions = [[7 + i % 50 for i in range(self._num_tokens)]] * num_requests
                engine = self._engines.get(name, self._engines["plain"])
                before = engine.stats()
                answers, rate = self._answer(engine, num_requests, temperature, predictions)
                if name == self.columns[-1] or (name == "auto" and "draft model" not in best):
                    stats = engine.stats()
                    counts = [
                        stats.num_drafted_tokens - before.num_drafted_tokens,
                        stats.num_accepted_draft_tokens - before.num_accepted_draft_tokens,
                    ]
                plain = plain or answers
                is_same = is_same and answers == plain
                best[name] = max(rate, best.get(name, 0.0))
        rates = [f"{rate:5.0f} ({rate / best['plain']:.2f}x)" for rate in best.values()]
        return [*rates, f"{counts[0]:8} {counts[1]:9}  {is_same}"]

    def _answer(
        self,
        engine: Engine,
        num_requests: int,
        temperature: float,
        predictions: Sequence[Sequence[int]] = (),
    ) -> tuple[Answers, float]:
        """Run requests that start together. Return their answers, and tokens a second over all."""
        for i in range(num_requests):
            params = SamplingParams(
                temperature=temperature,
                seed=i,
                max_tokens=self._num_tokens,
                ignore_eos=True,
                top_logprobs=0,
            )
            request = GenerateRequest(
                request_id=str(i),
                prompt_token_ids=self._prompts[i % len(self._prompts)],
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
        return answers, num_requests * self._num_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
