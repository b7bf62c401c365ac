"""Frames between a server and its engine process arrive unchanged."""

from dataclasses import replace
from multiprocessing import Pipe
from types import MappingProxyType

import pytest
from pydantic import ByteSize

from stonechat_models import (
    EngineConfig,
    EngineStats,
    FinishReason,
    GenerateRequest,
    GrammarSpec,
    ImageInfo,
    MediaInput,
    MediaTensor,
    ReasoningSpec,
    SamplingParams,
    StopRules,
    StopScope,
)
from stonechat_models.runtime.ipc import (
    FramePipe,
    LoadFailed,
    Log,
    Progress,
    Ready,
    Start,
)
from stonechat_models.runtime.runner import Abort, Add, Died, Refused, StepOutputs, Stop
from stonechat_models.transcript import SpeechParams, SpeechSegment, SpeechWord, Transcript
from stonechat_models.types import TokenLogprobs, TokenOutput
from tests.models.engines import model_info

PARAMS = SamplingParams(
    n=3,
    prompt_logprobs=0,
    max_tokens=0,
    seed=-(2**63),
    logit_bias={7: -100.0, 8: 1},
    stop=StopRules(
        strings=("\x00", "é"),
        scope=StopScope(("</think>",), until=("<end>",), unless="<think>"),
        never_after=("<call>",),
        never_first="{",
    ),
    stop_token_ids=(1, 2),
    grammar=GrammarSpec("regex", "[0-9]"),
    reasoning=ReasoningSpec("<think>", "</think>", True, 5),
)
IMAGE = MediaInput(b"\x00\xff" * 8, ((1, 2),), {"x": MediaTensor("float32", (1, 2), b"\x80" * 8)})
REQUEST = GenerateRequest(
    request_id="r",
    prompt_token_ids=[1, 2, 100_000],
    params=PARAMS,
    media=(IMAGE,),
    speech=SpeechParams(task="translate", language="de", with_words=True),
)
SEGMENT = SpeechSegment(
    seek=7,
    start=0.07,
    end=1.0,
    text=" Hé",
    token_ids=(4, 5),
    temperature=0.2,
    avg_logprob=-0.5,
    compression_ratio=0.9,
    no_speech_prob=0.1,
    words=(SpeechWord("Hé", 0.07, 0.5),),
)
OUTPUT = TokenOutput(
    request_id="r",
    index=1,
    token_ids=(5,),
    logprobs=(TokenLogprobs(5, -0.25, (5, 6), (-0.25, float("-inf"))),),
    finish_reason=FinishReason.LENGTH,
    num_cached_tokens=3,
    scheduled_time=1.5,
    num_predicted=1,
    prompt_logprobs=(TokenLogprobs(6, -0.5, (), (), 2), TokenLogprobs(7, float("-inf"), (), (), 9)),
    transcript=Transcript("en", (SEGMENT,)),
)


def send_and_receive(frame):
    ours, theirs = Pipe()
    with ours, theirs:
        FramePipe(ours).send(frame)
        return FramePipe(theirs).receive()


@pytest.mark.parametrize(
    "frame",
    [
        Start(EngineConfig(model="m", kv_cache_fraction=0.5, engine_process=True), 30),
        Add(REQUEST),
        Abort("r"),
        Abort("r", 2),
        Stop(),
        Progress("loading"),
        Ready(model_info(images=ImageInfo(token_id=7, bidirectional=True)), "/folder"),
        LoadFailed("ModelLoadError", "why"),
        StepOutputs([OUTPUT], EngineStats(num_running=1)),
        Refused("r", "grammar", "why"),
        Died("why"),
        Log("a.b", 30, "line\nline"),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_frames_arrive_unchanged(frame):
    assert send_and_receive(frame) == frame


def test_other_kinds_of_numbers_and_collections_arrive_as_built_in_types():
    start = send_and_receive(Start(EngineConfig(model="m", kv_cache_bytes=ByteSize(1 << 40)), 30))
    assert start.config.kv_cache_bytes == 1 << 40
    params = replace(PARAMS, logit_bias=MappingProxyType({7: -100.0, 8: 1.0}))
    add = send_and_receive(Add(replace(REQUEST, prompt_token_ids=range(5), params=params)))
    assert add.request.prompt_token_ids == [0, 1, 2, 3, 4]
    assert add.request.params.logit_bias == {7: -100.0, 8: 1.0}


def test_a_value_that_cannot_be_encoded_is_an_error_at_the_sender():
    with pytest.raises(TypeError, match="object cannot be sent"):
        send_and_receive(Add(replace(REQUEST, cache_salt=object())))


def test_a_closed_other_end_is_an_error():
    ours, theirs = Pipe()
    theirs.close()
    pipe = FramePipe(ours)
    with pytest.raises(OSError):  # noqa: PT011
        pipe.send(Stop())
    with pytest.raises((EOFError, OSError)):
        pipe.receive()
    pipe.close()
