"""The engine's thread: what it compiles, refuses and discards, and how it ends."""

import queue
import threading
from collections.abc import Iterator

import pytest

from stonechat_models import (
    FinishReason,
    GenerateRequest,
    GrammarError,
    GrammarSpec,
    SamplingParams,
)
from stonechat_models.engine.engine import MAX_CONSECUTIVE_FAILED_STEPS
from stonechat_models.errors import EngineDeadError
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.runtime.runner import Abort, Add, Died, Refused, Report, StepOutputs, Stop
from stonechat_models.runtime.thread_runner import EngineThread
from stonechat_models.types import TokenOutput
from tests.models.engines import make_engine
from tests.models.tiny_models import tiny_model
from tests.models.tiny_tokenizers import byte_level_backend, wrap

VOCAB_SIZE = 300
HANG_SECONDS = 60.0


class Runner:
    """A started thread, and its reports in order."""

    def __init__(self) -> None:
        self.tokenizer = wrap(byte_level_backend())
        eos = self.tokenizer.eos_token_ids
        engine = make_engine(
            tiny_model("llama", vocab_size=VOCAB_SIZE), vocab_size=VOCAB_SIZE, eos=eos
        )
        self.thread = EngineThread(engine, self.tokenizer)
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()

    def start(self) -> None:
        self.thread.start(self.reports.put)

    def next_report(self) -> Report:
        return self.reports.get(timeout=HANG_SECONDS)

    def next_refusal(self) -> Refused:
        while (report := self.next_report()) == StepOutputs(()):
            pass
        assert isinstance(report, Refused), report
        return report

    def outputs_of(self, request_id: str) -> list[TokenOutput]:
        """Return the outputs of a request up to its end."""
        outputs: list[TokenOutput] = []
        num_ended = 0
        while num_ended == 0:
            report = self.next_report()
            assert isinstance(report, StepOutputs), report
            own = [output for output in report.outputs if output.request_id == request_id]
            outputs += own
            num_ended = sum(output.finish_reason is not None for output in own)
        return outputs


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.thread.send(Stop())
    runner.thread.join(HANG_SECONDS)
    assert not runner.thread.is_alive


def request(request_id: str, grammar: GrammarSpec | None = None, **params) -> GenerateRequest:
    settings = {"max_tokens": 8, "seed": 1, "grammar": grammar}
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=[10, 20, 30],
        params=SamplingParams(**{**settings, **params}),
    )


def test_an_answer_follows_its_grammar(runner: Runner) -> None:
    runner.start()
    for seed in range(3):
        grammar = GrammarSpec("regex", "(abc|cd){2}")
        runner.thread.send(Add(request(str(seed), grammar, seed=seed, max_tokens=30)))
        token_ids = [i for o in runner.outputs_of(str(seed)) for i in o.token_ids]
        text = runner.tokenizer.decode(token_ids)
        assert text in {"abcabc", "abccd", "cdabc", "cdcd"}
    assert runner.thread.failure is None


def test_a_grammar_that_is_not_one_is_refused(runner: Runner) -> None:
    runner.start()
    runner.thread.send(Add(request("bad", GrammarSpec("regex", "(a"))))
    report = runner.next_refusal()
    assert (report.request_id, report.kind) == ("bad", "grammar")
    assert isinstance(report.error, GrammarError)
    runner.thread.send(Add(request("good")))
    assert runner.outputs_of("good")


def test_a_compiler_that_fails_refuses_only_its_request(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self, spec, reasoning=None):
        raise ZeroDivisionError("a bug")

    runner.start()
    monkeypatch.setattr(GrammarCompiler, "compile", fail)
    runner.thread.send(Add(request("bad", GrammarSpec("regex", "a"))))
    report = runner.next_refusal()
    assert (report.request_id, report.kind) == ("bad", "internal")
    assert "a bug" not in report.message
    assert not isinstance(report.error, GrammarError)
    assert "ZeroDivisionError: a bug" in caplog.text
    runner.thread.send(Add(request("good")))
    assert runner.outputs_of("good")
    assert runner.thread.is_alive


@pytest.mark.parametrize("is_sent_again", [False, True])
def test_a_request_aborted_while_its_grammar_compiles_does_not_start(
    is_sent_again: bool, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()
    compile_grammar = GrammarCompiler.compile

    def slow(self, spec, reasoning=None):
        has_begun.set()
        assert may_go_on.wait(HANG_SECONDS)
        return compile_grammar(self, spec, reasoning)

    monkeypatch.setattr(GrammarCompiler, "compile", slow)
    runner.start()
    runner.thread.send(Add(request("one", GrammarSpec("regex", "ab"))))
    assert has_begun.wait(HANG_SECONDS)
    runner.thread.send(Abort("one"))
    if is_sent_again:
        runner.thread.send(Add(request("one", GrammarSpec("regex", "cd"))))
    runner.thread.send(Add(request("plain")))
    assert runner.outputs_of("plain")
    may_go_on.set()
    last = "one" if is_sent_again else "last"
    if not is_sent_again:
        runner.thread.send(Add(request("last", GrammarSpec("regex", "cd"))))
    outputs = runner.outputs_of(last)
    assert runner.tokenizer.decode([i for o in outputs for i in o.token_ids]) == "cd"
    assert runner.thread.stats().num_running == 0


def test_one_choice_of_a_request_can_be_aborted(runner: Runner) -> None:
    runner.thread.send(Add(request("two", n=2, ignore_eos=True)))
    runner.thread.send(Abort("two", 0))
    runner.start()
    outputs = runner.outputs_of("two")
    assert {output.index for output in outputs} == {1}
    assert sum(len(output.token_ids) for output in outputs) == 8


def test_an_engine_whose_steps_all_fail_dies_with_its_reason(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(logits, states):
        raise RuntimeError("device lost")

    runner.thread.engine.sampler.launch = broken
    runner.start()
    num_failed = 0
    runner.thread.send(Add(request("0")))
    while not isinstance(report := runner.next_report(), Died):
        assert isinstance(report, StepOutputs)
        if report.outputs:
            assert [output.finish_reason for output in report.outputs] == [FinishReason.ERROR]
            num_failed += 1
            runner.thread.send(Add(request(str(num_failed))))
    assert num_failed == MAX_CONSECUTIVE_FAILED_STEPS
    assert "every request failed" in report.reason
    runner.thread.join(HANG_SECONDS)
    assert not runner.thread.is_alive
    assert isinstance(runner.thread.failure, EngineDeadError)
    assert "the engine has stopped" in caplog.text


def test_the_model_and_its_use_can_be_read_from_outside(runner: Runner) -> None:
    assert runner.thread.model.vocab_size == VOCAB_SIZE
    assert not runner.thread.is_alive
    runner.start()
    assert runner.thread.is_alive
    runner.thread.send(Add(request("one", ignore_eos=True)))
    runner.outputs_of("one")
    assert runner.thread.stats().num_generated_tokens == 8


def test_cheap_grammars_and_the_end_wait_for_no_costly_grammar(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_now, begun, gate = GrammarCompiler.compile, threading.Event(), threading.Event()

    def compile_slowly(self, spec, reasoning=None):
        if "a?" in spec.source:
            begun.set()
            gate.wait(HANG_SECONDS)
        return compile_now(self, spec, reasoning)

    monkeypatch.setattr(GrammarCompiler, "compile", compile_slowly)
    runner.start()
    runner.thread.send(Add(request("costly", GrammarSpec("regex", "a?" * 300))))
    assert begun.wait(HANG_SECONDS)
    runner.thread.send(Add(request("cheap", GrammarSpec("regex", "abc"), max_tokens=30)))
    assert runner.outputs_of("cheap")
    runner.thread.send(Stop())
    runner.thread.join(HANG_SECONDS)
    assert not runner.thread.is_alive
    assert not gate.is_set()
    gate.set()
