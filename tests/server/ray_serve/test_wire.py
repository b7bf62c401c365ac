"""What crosses between an ingress and a replica arrives as it was."""

from pathlib import Path

import pytest

from stonechat_models import (
    CompletionDelta,
    EmbeddingParams,
    EngineDeadError,
    EngineError,
    FinishReason,
    GenerateRequest,
    GrammarError,
    GrammarSpec,
    ImageInfo,
    InvalidParamsError,
    LogprobEntry,
    MediaInput,
    MediaTensor,
    PromptTooLongError,
    ReasoningSpec,
    RequestOutput,
    RequestTimings,
    SamplingParams,
    StopRules,
    StopScope,
    TopLogprob,
)
from stonechat_server.errors import to_api_error
from stonechat_server.ray_serve import wire
from tests.server.fake_engine import model_info

PARAMS = SamplingParams(
    n=2,
    temperature=0.5,
    seed=-(2**63),
    logit_bias={3: -1.5},
    top_logprobs=2,
    max_tokens=7,
    stop=StopRules(strings=("a", "ü"), scope=StopScope(after=("x",), until=("y",), unless="z")),
    stop_token_ids=(5, 6),
    grammar=GrammarSpec("regex", "[0-9]+"),
    reasoning=ReasoningSpec("<think>", "</think>", starts_open=True, budget=3),
)
IMAGE = MediaInput(
    b"\0" * 15 + b"\xff",
    ((3, 2), (9, 1)),
    {"pixels": MediaTensor("float32", (1, 2), b"\0\xff" * 4)},
)


def test_a_request_arrives_as_it_was() -> None:
    request = GenerateRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        params=PARAMS,
        priority=2,
        cache_salt="key",
        adapter="poems",
        prediction_token_ids=(4, 5),
        embedding=EmbeddingParams(dimensions=4, normalize=False),
        media=(IMAGE,),
    )
    assert wire.decode_request(wire.encode(request)) == request


def test_an_output_arrives_as_it_was() -> None:
    entry = LogprobEntry(7, "ä", "ä".encode(), -0.25, (TopLogprob(7, "ä", b"\xc3", -0.25),), 1)
    delta = CompletionDelta(1, "ä\ud7ff", (7,), (entry,), 1, FinishReason.STOP, "ü", 1)
    output = RequestOutput(
        "r", (delta,), 3, 2, True, RequestTimings(1.0, 2.0, None, 4.0), 1, "bad", (None, entry),
        b"\0\1",
    )  # fmt: skip
    for record in (wire.Output(output), wire.Accepted("name", 1.5)):
        assert wire.decode_record(wire.encode(record)) == record


@pytest.mark.parametrize(
    "error",
    [
        PromptTooLongError(9, 8),
        InvalidParamsError("logit_bias", "token id 9 is outside"),
        GrammarError("it is empty"),
        EngineDeadError("it stopped"),
        EngineError("it failed"),
    ],
)
def test_an_error_arrives_with_its_class_and_gives_the_same_answer(error: EngineError) -> None:
    record = wire.decode_record(wire.encode(wire.Failed.of(error)))
    assert isinstance(record, wire.Failed)
    arrived = record.error()
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    answers = to_api_error(error), to_api_error(arrived)
    assert [a and (a.status, a.body()) for a in answers[:1]] == [
        a and (a.status, a.body()) for a in answers[1:]
    ]


def test_a_description_has_the_model_and_the_files_of_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "chat_template.jinja").write_bytes(b"x")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "folder.json").mkdir()
    files = wire.tokenizer_files(tmp_path)
    assert files == {"chat_template.jinja": b"x", "tokenizer.json": b"{}"}
    description = wire.Description(
        model=model_info(notes=("a", "b"), images=ImageInfo(token_id=5)), files=files
    )
    assert wire.decode_description(wire.encode(description)) == description
