"""Simulate 2 to 256 engines behind ingresses, to see where the ingress becomes the limit.

    .venv/bin/python scripts/bench/scale.py --replicas 2 8 32 128 --ingresses 1 4
    .venv/bin/python scripts/bench/scale.py --engine cpu-135m --replicas 2 256 --way direct

Nothing is served and Ray is not needed: events are simulated with service times that were measured
(see `ENGINES` and `INGRESS`, and docs/scale.md for the commands). The routing is that of
`stonechat_server.ray_serve.prefixes`. Conversations begin at a rate that asks for `--load` of what
all engines can give. Ways: `ingress` passes each token through an ingress; `direct` lets engines
answer clients, and an ingress only routes; `sharded` is `ingress` where all turns of a conversation
meet the same ingress. A run is repeatable: it depends on `--seed` alone.
"""

import argparse
import heapq
import random
import statistics
import sys
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from stonechat_server.ray_serve.prefixes import PrefixTable

PIECE = 64
"""Tokens for each hash of a prompt, fewer than in the server: this saves time."""


@dataclass(frozen=True)
class EngineTimes:
    """A step takes `base` seconds, and `per_sequence` for each sequence in it."""

    base: float
    per_sequence: float
    prefill_rate: float
    """Prompt tokens a second."""
    max_sequences: int
    cache_tokens: int
    typical: int
    """Sequences at a time at full load, from which the rate of conversations is computed."""


ENGINES = {
    "h200-8b": EngineTimes(4.4e-3, 30e-6, 43_000, 256, 600_000, 64),
    "cpu-135m": EngineTimes(1.5e-3, 590e-6, 2_800, 64, 200_000, 8),
}
"""Fitted to docs/performance.md: an 8B in bfloat16 on an H200, a 135M Q4_1 on two CPU cores. The
sizes of the caches are assumptions."""
INGRESS = {"request": 2.1e-3, "message": 95e-6, "hop": 1.5e-3}
"""Seconds of one core for a request, and for each message of a stream; `hop` is the time of a call
to an engine."""
REPORT_SECONDS = 5.0


@dataclass
class Conversation:
    """What one client asks, turn by turn. All begin with the same system message."""

    name: int
    turns: int
    tokens: int
    """Those of the prompt and of all answers so far."""

    def hashes(self) -> list[bytes]:
        common = SYSTEM_TOKENS // PIECE
        number = self.tokens // PIECE
        own = self.name if number > common else 0
        return [b"%d:%d" % (own if i >= common else 0, i) for i in range(number)]


SYSTEM_TOKENS = 320
QUESTION_TOKENS = (40, 400)
ANSWER_TOKENS = (50, 350)
TURNS = (2, 8)
THINK_SECONDS = 4.0


@dataclass
class Turn:
    conversation: Conversation
    arrival: float
    ingress: int
    answer: int
    hashes: list[bytes]


@dataclass
class Engine:
    """One replica: sequences in a batch, waiting prompts, and a prefix cache."""

    times: EngineTimes
    waiting: deque[Turn] = field(default_factory=deque)
    ends: list[tuple[int, int, Turn]] = field(default_factory=list)
    """The step in which each sequence ends."""
    begun: list[Turn] = field(default_factory=list)
    """Those whose first token comes with the step that runs."""
    of_ingress: Counter[int] = field(default_factory=Counter)
    cache: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    recent: list[bytes] = field(default_factory=list)
    step: int = 0
    is_running: bool = False

    def read_cache(self, hashes: list[bytes]) -> int:
        """Take a prompt into the cache. Return how many of its pieces were there."""
        found = 0
        while found < len(hashes) and hashes[found] in self.cache:
            found += 1
        for content in reversed(hashes):
            self.cache[content] = None
            self.cache.move_to_end(content)
        while len(self.cache) > self.times.cache_tokens // PIECE:
            self.cache.popitem(last=False)
        return found


@dataclass
class Result:
    """Figures after the warm-up."""

    tokens: int = 0
    delays: list[tuple[float, int]] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    asked: int = 0
    cached: int = 0
    busy: float = 0.0


class Simulation:
    """Events in the order of their times; see the module."""

    def __init__(self, options: argparse.Namespace, replicas: int, ingresses: int) -> None:
        self.options, self.times = options, ENGINES[options.engine]
        self.rng = random.Random(options.seed)
        self.engines = {str(i): Engine(self.times) for i in range(replicas)}
        self.loads = [dict.fromkeys(self.engines, 0) for _ in range(ingresses)]
        self.tables = [PrefixTable() for _ in range(ingresses)]
        self.free_at = [0.0] * ingresses
        self.events: list[tuple[float, int, Any]] = []
        self.number = 0
        self.result = Result()
        self.now = 0.0

    def run(self) -> Result:
        self.at(0.0, self.begin_conversation)
        self.at(REPORT_SECONDS, self.report)
        while self.events and (event := heapq.heappop(self.events))[0] < self.options.seconds:
            self.now = event[0]
            event[2]()
        return self.result

    def at(self, moment: float, action: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (moment, self.number, action))

    @property
    def is_measured(self) -> bool:
        return bool(self.now >= self.options.seconds / 2)

    # --- clients ---

    def begin_conversation(self) -> None:
        rng = self.rng
        self.at(self.now + rng.expovariate(self.rate()), self.begin_conversation)
        conversation = Conversation(self.number, rng.randint(*TURNS), SYSTEM_TOKENS)
        self.ask(conversation)

    def rate(self) -> float:
        """Conversations a second that ask for `--load` of the engines' time."""
        times, turns = self.times, statistics.mean(TURNS)
        answer, question = statistics.mean(ANSWER_TOKENS), statistics.mean(QUESTION_TOKENS)
        step = times.base / times.typical + times.per_sequence
        seconds = turns * (answer * step + question / times.prefill_rate)
        return float(self.options.load * len(self.engines) / seconds)

    def ask(self, conversation: Conversation) -> None:
        rng = self.rng
        conversation.tokens += rng.randint(*QUESTION_TOKENS)
        number = len(self.tables)
        sharded = self.options.way == "sharded"
        ingress = conversation.name % number if sharded else rng.randrange(number)
        turn = Turn(
            conversation, self.now, ingress, rng.randint(*ANSWER_TOKENS), conversation.hashes()
        )
        done = self.spend(ingress, INGRESS["request"])
        self.at(done, lambda: self.route(turn))

    def spend(self, ingress: int, seconds: float) -> float:
        """Let an ingress compute, after all that it has to do. Return when it is done."""
        self.free_at[ingress] = max(self.now, self.free_at[ingress]) + seconds
        if self.is_measured:
            self.result.busy += seconds
        return self.free_at[ingress]

    # --- routing ---

    def route(self, turn: Turn) -> None:
        table, loads = self.tables[turn.ingress], self.loads[turn.ingress]
        hashes = turn.hashes if self.options.routing == "prefix" else []
        true_loads = {
            name: max(own, len(self.engines[name].ends) + len(self.engines[name].waiting))
            for name, own in loads.items()
        }
        name = table.rank(hashes, true_loads)[0]
        table.note(hashes, name)
        loads[name] += 1
        self.engines[name].recent.append(turn.hashes[-1])
        self.at(self.now + INGRESS["hop"], lambda: self.accept(name, turn))

    def report(self) -> None:
        """Every router is told the last piece of each prompt that the engines have seen."""
        self.at(self.now + REPORT_SECONDS, self.report)
        for name, engine in self.engines.items():
            for table in self.tables:
                table.note_report(engine.recent, name)
            engine.recent.clear()

    # --- engines ---

    def accept(self, name: str, turn: Turn) -> None:
        engine = self.engines[name]
        engine.waiting.append(turn)
        if not engine.is_running:
            engine.is_running = True
            self.begin_step(name)

    def begin_step(self, name: str) -> None:
        engine = self.engines[name]
        prompt_tokens = 0
        while engine.waiting and len(engine.ends) < self.times.max_sequences:
            turn = engine.waiting.popleft()
            found = engine.read_cache(turn.hashes) * PIECE
            prompt_tokens += turn.conversation.tokens - found
            if self.is_measured and turn.conversation.tokens > SYSTEM_TOKENS + QUESTION_TOKENS[1]:
                self.result.asked += turn.conversation.tokens
                self.result.cached += found
            self.number += 1
            heapq.heappush(engine.ends, (engine.step + turn.answer, self.number, turn))
            engine.begun.append(turn)
            engine.of_ingress[turn.ingress] += 1
        seconds = self.times.base + self.times.per_sequence * len(engine.ends)
        seconds += prompt_tokens / self.times.prefill_rate
        self.at(self.now + seconds, lambda: self.end_step(name, seconds))

    def end_step(self, name: str, seconds: float) -> None:
        engine = self.engines[name]
        engine.step += 1
        self.deliver(engine, seconds)
        while engine.ends and engine.ends[0][0] <= engine.step:
            turn = heapq.heappop(engine.ends)[2]
            engine.of_ingress[turn.ingress] -= 1
            if not engine.of_ingress[turn.ingress]:
                del engine.of_ingress[turn.ingress]
            self.loads[turn.ingress][name] -= 1
            self.finish(turn)
        if engine.ends or engine.waiting:
            self.begin_step(name)
        else:
            engine.is_running = False

    def deliver(self, engine: Engine, seconds: float) -> None:
        """Pass a step's tokens on, through the ingress of each or directly.

        If steps are faster than the interval, a message has the tokens of several. Each step is
        then charged its part of the messages.
        """
        interval, is_direct = self.options.interval / 1e3, self.options.way == "direct"
        for ingress, number in engine.of_ingress.items():
            done = self.now
            if not is_direct:
                messages = number * min(1.0, seconds / interval if interval else 1.0)
                done = self.spend(ingress, messages * INGRESS["message"])
            if self.is_measured:
                self.result.tokens += number
                self.result.delays.append((done - self.now, number))
        if self.is_measured:
            for turn in engine.begun:
                sent = self.now if is_direct else max(self.now, self.free_at[turn.ingress])
                self.result.first_tokens.append(sent - turn.arrival)
        engine.begun.clear()

    def finish(self, turn: Turn) -> None:
        conversation = turn.conversation
        conversation.tokens += turn.answer
        conversation.turns -= 1
        if conversation.turns > 0:
            pause = self.rng.expovariate(1 / THINK_SECONDS)
            read = max(self.now, self.free_at[turn.ingress])
            self.at(read + pause, lambda: self.ask(conversation))


def percentile(pairs: list[tuple[float, int]], share: float) -> float:
    """The value below which `share` of the weights lie."""
    total, wanted = 0, share * sum(weight for _, weight in pairs)
    for value, weight in sorted(pairs):
        total += weight
        if total >= wanted:
            return value
    return 0.0


def row(options: argparse.Namespace, replicas: int, ingresses: int) -> str:
    result = Simulation(options, replicas, ingresses).run()
    seconds = options.seconds / 2
    first = [(value, 1) for value in result.first_tokens]
    busy = result.busy / seconds / ingresses
    cells = [
        *(replicas, ingresses, options.way, options.routing),
        f"{result.tokens / seconds:,.0f}",
        f"{busy:.0%}" if busy < 1 else f"{busy:.0%} (over)",
        *(f"{1e3 * percentile(result.delays, p):.1f}" for p in (0.5, 0.99)),
        *(f"{1e3 * percentile(first, p):.0f}" for p in (0.5, 0.99)),
        f"{result.cached / max(1, result.asked):.0%}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = (
    *("engines", "ingresses", "way", "routing", "tokens/s", "ingress busy"),
    *("delay of a token, ms, p50", "p99", "first token, ms, p50", "p99", "cached"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, default="h200-8b")
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 8, 32, 128])
    parser.add_argument("--ingresses", type=int, nargs="+", default=[1])
    parser.add_argument("--way", choices=["ingress", "direct", "sharded"], default="ingress")
    parser.add_argument("--routing", choices=["prefix", "load"], default="prefix")
    parser.add_argument("--load", type=float, default=0.7, help="share of what engines can give")
    parser.add_argument(
        "--interval", type=float, default=20.0, help="milliseconds between messages of a stream"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="half of it is warm-up")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "---|" * len(HEAD))
    for replicas in options.replicas:
        for ingresses in options.ingresses:
            print(row(options, replicas, ingresses), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
