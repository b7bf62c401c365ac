"""Measure what grammars cost on the default model's vocabulary: to compile, and per token.

Prints a table: milliseconds to compile (on first use, then from the cache), and microseconds over
random walks to compute a mask (median and 99th percentile) and to accept a token (median).

    python scripts/bench/grammars.py
"""

import json
import random
import statistics
import time
from typing import Any

import numpy as np

from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import GrammarSpec

NUM_WALKS = 40
MAX_TOKENS = 120


def record(num_properties: int, kind: str = "string") -> dict[str, Any]:
    properties = {f"field_{i}": {"type": kind} for i in range(num_properties)}
    return {"type": "object", "properties": properties, "required": list(properties)}


def schema(value: object) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(value))


def tools(count: int, kind: str = "string") -> GrammarSpec:
    calls = [
        f'"tool_{i}\\", \\"arguments\\": " %json {json.dumps(record(5, kind))} "}}\\n</tool_call>"'
        for i in range(count)
    ]
    text = 'start: TEXT | lead call\nTEXT: /(?s:.*)/\nLEAD: TEXT "<tool_call>"\nlead[lazy]: LEAD\n'
    return GrammarSpec("lark", f'{text}call: "\\n{{\\"name\\": \\"" ({" | ".join(calls)})\n')


GRAMMARS = {
    "any JSON object": schema({"type": "object"}),
    "record of 5 strings": schema(record(5)),
    "record of 100 strings": schema(record(100)),
    "1,000 optional properties": schema({**record(1000), "required": []}),
    "enum of 5,000 texts": schema({"enum": [f"value number {i}" for i in range(5000)]}),
    "date-time": schema({"type": "string", "format": "date-time"}),
    "pattern with 3,000 repeats": schema({"type": "string", "pattern": "^([a-z]{1,30} ){1,100}$"}),
    "regex": GrammarSpec("regex", "[A-Z]{3}-[0-9]{2}"),
    "text or one of 20 tools": tools(20),
    "the same with numbers": tools(20, "number"),
    "the same with integers": tools(20, "integer"),
}


def main() -> None:
    files = resolve_model(EngineConfig(model=""), print)
    tokenizer = Tokenizer.from_folder(files.folder)
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    start = time.perf_counter()
    compiler.compile(GrammarSpec("regex", "x"))
    print(f"vocabulary of {tokenizer.vocab_size}, read once: {time.perf_counter() - start:.2f} s\n")
    print(
        "| grammar | compile ms | cached ms | mask µs, median | mask µs, 99% | accept µs, median |"
    )
    print("|---|---|---|---|---|---|")
    for name, spec in GRAMMARS.items():
        print(f"| {name} | {' | '.join(measure(compiler, tokenizer, spec))} |", flush=True)


def measure(compiler: GrammarCompiler, tokenizer: Tokenizer, spec: GrammarSpec) -> list[str]:
    compile_seconds = []
    for _ in range(2):
        start = time.perf_counter()
        compiled = compiler.compile(spec)
        compile_seconds.append(time.perf_counter() - start)
    rng = random.Random(0)
    masks, accepts = [], []
    row = np.zeros((tokenizer.vocab_size + 31) // 32, dtype=np.int32)
    for _ in range(NUM_WALKS):
        constraint = compiled.new_constraint()
        for _ in range(MAX_TOKENS):
            start = time.perf_counter()
            constraint.fill_bitmask(row)
            masks.append(time.perf_counter() - start)
            bits = np.unpackbits(row.view(np.uint8), bitorder="little")
            token_id = int(rng.choice(np.nonzero(bits)[0]))
            if token_id in tokenizer.eos_token_ids:
                break
            start = time.perf_counter()
            constraint.accept(token_id)
            accepts.append(time.perf_counter() - start)
            if constraint.is_finished:
                break
    milliseconds = [f"{seconds * 1e3:.2f}" for seconds in compile_seconds]
    return [
        *milliseconds,
        f"{statistics.median(masks) * 1e6:.0f}",
        f"{statistics.quantiles(masks, n=100)[98] * 1e6:.0f}",
        f"{statistics.median(accepts) * 1e6:.0f}",
    ]


if __name__ == "__main__":
    main()
