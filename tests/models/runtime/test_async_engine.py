"""The engine for asyncio: concurrency, aborts, refusals, and the death of the engine."""

import asyncio
import threading
from dataclasses import replace

import pytest

from stonechat_models import (
    AsyncEngine,
    EngineConfig,
    EngineDeadError,
    EngineError,
    FinishReason,
    GenerateRequest,
    GrammarError,
    GrammarSpec,
    InvalidParamsError,
    PromptTooLongError,
    SamplingParams,
    StopRules,
)
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.runtime import async_engine
from stonechat_models.runtime.process_runner import EngineProcess
from stonechat_models.runtime.runner import Add, Died, Refused, StepOutputs, Stop
from stonechat_models.text import output_processor
from stonechat_models.text.logprob_entries import prompt_entries
from stonechat_models.text.output_processor import OutputProcessor
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import TokenOutput
from tests.models.engines import make_engine
from tests.models.tiny_models import tiny_model

VOCAB_SIZE = 49152
PROMPT = [400, 500, 600, 700, 800]


@pytest.fixture(scope="module")
def module():
    return tiny_model("llama", vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def tokenizer(default_model_files):
    return Tokenizer.from_folder(default_model_files.folder)


@pytest.fixture
def run_with_engine(module, tokenizer):
    """Return a function that runs a coroutine function with a started engine."""

    def run(test, **limits):
        async def main():
            engine = make_engine(module, vocab_size=VOCAB_SIZE, **limits)
            async_engine = AsyncEngine(engine, tokenizer)
            await async_engine.start()
            try:
                return await asyncio.wait_for(test(async_engine), 120)
            finally:
                await async_engine.shutdown()

        return asyncio.run(main())

    return run


def request(request_id="r", prompt=PROMPT, **params):
    defaults = {"max_tokens": 8, "seed": 1, "ignore_eos": True}
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**{**defaults, **params}),
    )


async def collect(engine, generate_request):
    """Return text, ids and finish reason by choice, and the last output."""
    texts, ids, reasons = {}, {}, {}
    last = None
    async for last in engine.generate(generate_request):
        for delta in last.deltas:
            texts[delta.index] = texts.get(delta.index, "") + delta.text
            ids.setdefault(delta.index, []).extend(delta.token_ids)
            reasons[delta.index] = delta.finish_reason
    return texts, ids, reasons, last


def test_text_is_the_decoded_tokens(run_with_engine, tokenizer):
    async def test(engine):
        texts, ids, reasons, last = await collect(engine, request(n=3))
        assert set(texts) == {0, 1, 2}
        for index in texts:
            assert len(ids[index]) == 8
            assert texts[index] == tokenizer.decode(ids[index])
            assert reasons[index] is FinishReason.LENGTH
        assert last.finished
        assert last.num_prompt_tokens == 5
        assert last.timings.arrival <= last.timings.scheduled <= last.timings.first_token
        assert last.timings.first_token <= last.timings.finished

    run_with_engine(test)


def test_requests_at_once_equal_requests_alone(run_with_engine):
    requests = [request(f"r{i}", [400 + i] * (i + 1), seed=i) for i in range(12)]

    async def alone(engine):
        return [await collect(engine, r) for r in requests]

    async def together(engine):
        return await asyncio.gather(*(collect(engine, r) for r in requests))

    expected = run_with_engine(alone)
    actual = run_with_engine(together)
    assert [a[1] for a in actual] == [e[1] for e in expected]


def test_a_stop_string_ends_a_choice_and_frees_it(run_with_engine):
    async def test(engine):
        texts, *_ = await collect(engine, request(max_tokens=30))
        whole = texts[0]
        stop = whole[len(whole) // 2 :][:3]
        rules = StopRules(strings=(stop,))
        texts, _, reasons, _ = await collect(engine, request(max_tokens=30, stop=rules))
        assert texts[0] == whole[: whole.index(stop)]
        assert reasons[0] is FinishReason.STOP
        await idle(engine)

    run_with_engine(test)


async def idle(engine):
    for _ in range(12_000):
        if engine.stats().num_used_blocks == 0 and engine.stats().num_running == 0:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("blocks are still held")


def hold(engine):
    """Let the engine wait after its first output. Returns an event that lets it go on."""
    may_go_on, has_answered = threading.Event(), threading.Event()
    step = engine._runner.engine.step

    def held_step():
        if has_answered.is_set():
            may_go_on.wait(60)
        outputs = step()
        if outputs:
            has_answered.set()
        return outputs

    engine._runner.engine.step = held_step
    return may_go_on


def test_a_closed_iterator_frees_its_blocks(run_with_engine):
    async def test(engine):
        may_go_on = hold(engine)
        stream = engine.generate(request(n=4, max_tokens=100))
        await anext(stream)
        await stream.aclose()
        may_go_on.set()
        await idle(engine)
        assert engine.stats().num_generated_tokens < 400

    run_with_engine(test)


def test_a_choice_that_is_ended_early_runs_no_further(run_with_engine):
    async def test(engine):
        may_go_on = hold(engine)
        outputs = engine.generate(request(n=2, max_tokens=100))
        first = await anext(outputs)
        engine.end_choice("r", 0)
        may_go_on.set()
        indices = {delta.index async for output in outputs for delta in output.deltas}
        assert 0 in {delta.index for delta in first.deltas}
        assert indices == {1}
        engine.end_choice("r", 1)
        await idle(engine)
        assert engine.stats().num_generated_tokens < 200

    run_with_engine(test)


def test_a_cancelled_reader_frees_its_blocks(run_with_engine):
    async def test(engine):
        task = asyncio.create_task(collect(engine, request(max_tokens=100)))
        while engine.stats().num_steps < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(engine)

    run_with_engine(test)


def test_a_prompt_is_scored_and_nothing_generated(run_with_engine, tokenizer, monkeypatch):
    async def test(engine):
        full = request(prompt=[400] * 128, max_tokens=0, prompt_logprobs=1, n=2)
        return [output async for output in engine.generate(full)]

    threads = []

    def recorded(*args):
        threads.append(threading.get_ident())
        return prompt_entries(*args)

    monkeypatch.setattr(output_processor, "prompt_entries", recorded)
    (output,) = run_with_engine(test)
    assert len(threads) == 1
    assert threads != [threading.get_ident()], "a long prompt would delay the event loop"
    assert output.finished
    assert [delta.finish_reason for delta in output.deltas] == [FinishReason.LENGTH] * 2
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == 128
    entry = output.prompt_logprobs[1]
    assert (entry.token_id, entry.token) == (400, tokenizer.token_text(400))
    assert (entry.rank == 1) == (entry.top[0].token_id == 400)


def test_a_long_prompt_that_needs_one_piece_is_not_scored(run_with_engine):
    async def test(engine):
        info = engine.model
        limit = info.max_prompt_rows
        engine._runner.model = replace(info, exact_chunks=False, max_model_len=9999)
        with pytest.raises(InvalidParamsError, match=f"at most {limit + 1} tokens, not 9000") as e:
            await collect(engine, request(prompt=[400] * 9000, prompt_logprobs=0))
        assert e.value.param == "prompt_logprobs"

    run_with_engine(test)


def test_outputs_that_wait_for_a_slow_reader_are_joined(run_with_engine):
    async def test(engine):
        expected = await collect(engine, request("quick", n=2))
        stream = engine.generate(request("slow", n=2))
        outputs = [await anext(stream)]
        while engine.stats().num_running:
            await asyncio.sleep(0.01)
        await collect(engine, request("later", max_tokens=1))  # its output comes after all others
        outputs += [output async for output in stream]
        return expected, outputs

    (texts, ids, reasons, _), outputs = run_with_engine(test)
    assert len(outputs) <= 3
    assert outputs[-1].finished
    deltas = [delta for output in outputs for delta in output.deltas]
    for index in range(2):
        choice = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in choice) == texts[index]
        assert [i for delta in choice for i in delta.token_ids] == list(ids[index])
        assert choice[-1].finish_reason == reasons[index]


def test_an_output_does_not_wait_for_the_next_one(run_with_engine):
    async def test(engine):
        stream = engine.generate(request(max_tokens=2))
        release = threading.Event()
        step = engine._runner.engine.step

        def one_step_then_wait():
            outputs = step()
            if outputs:
                engine._runner._deliver(StepOutputs(outputs))
                release.wait(60)
            return []

        engine._runner.engine.step = one_step_then_wait
        try:
            first = await asyncio.wait_for(anext(stream), 60)  # while the engine is blocked
        finally:
            release.set()
        return [first] + [output async for output in stream]

    first, *others = run_with_engine(test)
    assert sum(delta.num_tokens for delta in first.deltas) == 1
    assert others[-1].finished


def test_an_invalid_request_is_refused_before_the_first_output(run_with_engine):
    async def test(engine):
        with pytest.raises(PromptTooLongError) as error:
            await collect(engine, request(prompt=[400] * 128))
        assert (error.value.num_prompt_tokens, error.value.max_model_len) == (128, 128)
        with pytest.raises(PromptTooLongError):
            await collect(engine, request(prompt=[400] * 129, max_tokens=0))
        with pytest.raises(InvalidParamsError, match="no tokens"):
            await collect(engine, request(prompt=[]))
        with pytest.raises(InvalidParamsError, match="49152"):
            await collect(engine, request(logit_bias={VOCAB_SIZE: 1.0}))
        stream = engine.generate(request("twice", max_tokens=50))
        await anext(stream)
        with pytest.raises(InvalidParamsError, match="is running"):
            await collect(engine, request("twice"))
        await stream.aclose()

    run_with_engine(test)


def test_a_dead_engine_fails_its_requests(run_with_engine):
    async def test(engine):
        def die():
            raise MemoryError("no more")

        stream = engine.generate(request(max_tokens=100))
        await anext(stream)
        engine._runner.engine.step = die
        with pytest.raises(EngineDeadError, match="no more"):
            async for _ in stream:
                pass
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await collect(engine, request("later"))

    run_with_engine(test)


def test_shutdown_ends_running_requests(module, tokenizer):
    async def main():
        engine = AsyncEngine(make_engine(module, vocab_size=VOCAB_SIZE), tokenizer)
        await engine.start()
        stream = engine.generate(request(max_tokens=120))
        await anext(stream)
        await engine.shutdown()
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass
        assert not engine.is_alive

    asyncio.run(main())


def test_grammars_of_cancelled_requests_are_not_compiled(run_with_engine, monkeypatch):
    compiled_sources = []
    may_go_on = threading.Event()

    def slow(self, spec, reasoning=None):
        compiled_sources.append(spec.source)
        may_go_on.wait(60)
        raise GrammarError("no")

    monkeypatch.setattr(GrammarCompiler, "compile", slow)

    async def test(engine):
        tasks = [
            asyncio.create_task(
                collect(engine, request(str(i), grammar=GrammarSpec("regex", str(i))))
            )
            for i in range(4)
        ]
        while not compiled_sources:
            await asyncio.sleep(0.01)
        for task in tasks[1:3]:
            task.cancel()
        await asyncio.wait(tasks[1:3])
        await collect(engine, request("plain"))  # the engine handles it after the cancellations
        may_go_on.set()
        for task in (tasks[0], tasks[3]):
            with pytest.raises(GrammarError):
                await task

    run_with_engine(test)
    assert compiled_sources == ["0", "3"]


def test_an_answer_follows_its_grammar(run_with_engine):
    async def test(engine):
        grammar = GrammarSpec("choice", '["red", "green"]')
        texts, _, reasons, last = await collect(
            engine, request(n=3, grammar=grammar, max_tokens=20, ignore_eos=False)
        )
        assert set(texts) == {0, 1, 2}
        assert set(texts.values()) <= {"red", "green"}
        assert set(reasons.values()) == {FinishReason.STOP}
        assert last.finished

    run_with_engine(test)


def test_a_failure_of_the_grammar_compiler_is_an_engine_error(run_with_engine, monkeypatch):
    def fail(self, spec, reasoning=None):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(GrammarCompiler, "compile", fail)

    async def test(engine):
        with pytest.raises(EngineError, match="compiler has failed") as error:
            await collect(engine, request(grammar=GrammarSpec("regex", "a")))
        assert not isinstance(error.value, GrammarError | EngineDeadError)
        texts, *_ = await collect(engine, request("later"))
        assert texts[0]

    run_with_engine(test)


def test_an_output_that_cannot_be_processed_ends_only_its_request(run_with_engine, monkeypatch):
    process = OutputProcessor.process

    def fail_for_one(self, outputs):
        if outputs[0].request_id == "bad":
            raise ZeroDivisionError("a bug")
        return process(self, outputs)

    monkeypatch.setattr(OutputProcessor, "process", fail_for_one)

    async def test(engine):
        good = asyncio.create_task(collect(engine, request("good", max_tokens=20)))
        with pytest.raises(EngineDeadError, match="cannot be processed"):
            await collect(engine, request("bad", max_tokens=100))
        _, ids, *_ = await good
        assert len(ids[0]) == 20
        await idle(engine)
        assert engine.is_alive

    run_with_engine(test)


def test_an_engine_that_dies_after_the_check_fails_the_request(run_with_engine, monkeypatch):
    async def test(engine):
        send = engine._runner.send

        def die(message):
            monkeypatch.setattr(type(engine._runner), "is_alive", property(lambda _: False))
            send(message)

        monkeypatch.setattr(engine._runner, "send", die)
        with pytest.raises(EngineDeadError, match="not running"):
            await collect(engine, request())
        monkeypatch.undo()

    run_with_engine(test)


def test_reports_after_the_end_of_the_loop_are_discarded(module, tokenizer, monkeypatch):
    engine = AsyncEngine(make_engine(module, vocab_size=VOCAB_SIZE), tokenizer)
    asyncio.run(engine.start())
    is_discarded = threading.Event()
    monkeypatch.setattr(async_engine.logger, "debug", lambda *_: is_discarded.set())
    engine._runner.send(Add(request(max_tokens=4)))
    assert is_discarded.wait(60)
    assert engine.is_alive
    engine._runner.send(Stop())
    engine._runner.join(60.0)
    assert engine.failure is None
    assert not engine.is_alive


def test_an_engine_in_a_process_has_the_tokenizer_of_its_folder(default_model_files, monkeypatch):
    class Process(EngineProcess):
        def __init__(self):
            """Start nothing."""

        tokenizer_folder = default_model_files.folder

    process, configs = Process(), []

    def load(config, progress, meanwhile):
        configs.append(config)
        return process

    monkeypatch.setattr(EngineProcess, "load", load)
    config = EngineConfig(model="owner/name", engine_process=True)
    engine = AsyncEngine.from_config(config)
    assert configs == [config]
    assert engine._runner is process
    expected = Tokenizer.from_folder(default_model_files.folder)
    assert engine.tokenizer.encode("Hello wörld") == expected.encode("Hello wörld")


def test_no_process_stays_whose_tokenizer_cannot_be_read(tmp_path, monkeypatch):
    class Process(EngineProcess):
        tokenizer_folder = tmp_path
        ended = False

        def __init__(self):
            """Start nothing."""

        def join(self, timeout):
            self.ended = True

    process = Process()
    monkeypatch.setattr(EngineProcess, "load", lambda *_, **__: process)
    with pytest.raises(Exception, match="tokenizer"):
        AsyncEngine.in_process(EngineConfig(model="m"), lambda _: None, lambda: True)
    assert process.ended


def test_a_refusal_of_a_closed_request_is_ignored(run_with_engine):
    async def test(engine):
        engine._deliver(Refused("gone", "grammar", "no"))
        await asyncio.sleep(0)
        assert not engine._reports
        texts, *_ = await collect(engine, request())
        assert texts[0]

    run_with_engine(test)


class SilentRunner(EngineProcess):
    """A runner that takes messages and reports nothing by itself."""

    is_alive = True

    def __init__(self, model):
        self._info = model
        self.sent = []

    @property
    def model(self):
        return self._info

    def start(self, deliver):
        self.deliver = deliver

    def send(self, message):
        self.sent.append(message)


def step_of(request_id, token_id, finish_reason=None):
    return StepOutputs(
        (
            TokenOutput(
                request_id=request_id,
                index=0,
                token_ids=(token_id,),
                logprobs=None,
                finish_reason=finish_reason,
                num_cached_tokens=0,
            ),
        )
    )


def test_steps_that_wait_for_the_event_loop_are_processed_as_one(module, tokenizer, monkeypatch):
    runner = SilentRunner(make_engine(module, vocab_size=VOCAB_SIZE).model.info)
    batches = []
    process = OutputProcessor.process

    def count(self, outputs):
        batches.append(len(outputs))
        return process(self, outputs)

    monkeypatch.setattr(OutputProcessor, "process", count)

    async def test():
        engine = AsyncEngine(runner, tokenizer)
        await engine.start()
        ended, refused, broken = (
            asyncio.create_task(collect(engine, request(name))) for name in ("a", "b", "c")
        )
        await asyncio.sleep(0)
        runner.deliver(step_of("a", 400))
        runner.deliver(step_of("a", 500))
        runner.deliver(Refused("b", "grammar", "no"))
        runner.deliver(step_of("a", 600, FinishReason.LENGTH))
        runner.deliver(step_of("c", 700))
        runner.deliver(Died("gone"))
        texts, *_ = await ended
        with pytest.raises(GrammarError, match="no"):
            await refused
        with pytest.raises(EngineDeadError, match="gone"):
            await broken
        return texts

    texts = asyncio.run(test())
    assert batches == [2, 1, 1]
    assert texts[0] == tokenizer.decode([400, 500, 600])
    assert [type(message) for message in runner.sent] == [Add] * 3


def test_a_closed_event_loop_keeps_no_reports(module, tokenizer):
    runner = SilentRunner(make_engine(module, vocab_size=VOCAB_SIZE).model.info)
    engine = AsyncEngine(runner, tokenizer)
    asyncio.run(engine.start())
    for _ in range(2):
        runner.deliver(step_of("a", 400))
        assert not engine._reports
