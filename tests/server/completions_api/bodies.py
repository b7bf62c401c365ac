"""Requests to `/v1/completions`, and scripts whose tokens have log-probabilities."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.testclient import TestClient
from httpx import Response

from stonechat_models import (
    FinishReason,
    GenerateRequest,
    LogprobEntry,
    RequestOutput,
    TopLogprob,
)
from tests.server.bodies import events
from tests.server.fake_engine import ByteTokenizer, Script, delta, output

URL = "/v1/completions"
OTHERS = (b"x", b"\xc3", b" the")
"""The tokens 1000, 1001 and 1002, which are alternatives everywhere."""


@dataclass
class BosTokenizer(ByteTokenizer):
    """Begins texts with the special token `<s>`, whose id is 0."""

    special_tokens: Mapping[str, str] = field(default_factory=lambda: {"bos_token": "<s>"})
    special_ids: frozenset[int] = frozenset({0})

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        begun = b"\0" if add_special_tokens else b""
        return list(begun + text.encode().replace(b"<s>", b"\0"))

    def token_bytes(self, token_id: int) -> bytes:
        return super().token_bytes(token_id) if token_id else b"<s>"

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("latin-1")


def post(client: TestClient, **fields: Any) -> Response:
    return client.post(URL, json={"prompt": "Say"} | fields)


def ask(client: TestClient, **fields: Any) -> Any:
    """The plain answer. Fails on an error."""
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client: TestClient, **fields: Any) -> list[Any]:
    return events(post(client, stream=True, **fields))


def fold(chunks: Sequence[Any]) -> list[Any]:
    """The choices that the chunks of a stream make up."""
    choices: dict[int, Any] = {}
    for chunk in chunks:
        for new in chunk["choices"]:
            known = choices.setdefault(new["index"], {"index": new["index"], "text": ""})
            known["text"] += new["text"]
            if new["logprobs"] is not None:
                lists = known.get("logprobs") or {name: [] for name in new["logprobs"]}
                known["logprobs"] = {name: lists[name] + new["logprobs"][name] for name in lists}
            known.setdefault("logprobs", None)
            known["finish_reason"] = new["finish_reason"]
            known.update({key: new[key] for key in new.keys() & {"prompt_logprobs"}})
            known.update({key: new[key] for key in new.keys() & {"prompt_token_ids"}})
            if "token_ids" in new:
                known["token_ids"] = known.get("token_ids", []) + new["token_ids"]
    return [choices[index] for index in sorted(choices)]


def token_script(
    *tokens: bytes, finish: FinishReason = FinishReason.STOP, logprobs: Sequence[float] = ()
) -> Script:
    """One token a step. Text and log-probabilities come as from the engine: a character, and the
    tokens that begin in it, once the character is complete. `logprobs` are those of the tokens of
    choice 0; each further choice has 1 less."""

    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        params = request.params
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        items: list[RequestOutput | Exception | float] = []
        waiting: list[tuple[int, bytes]] = []
        for step, token in enumerate(tokens):
            is_last = step == len(tokens) - 1
            text = decoder.decode(token, is_last)
            waiting.append((step, token))
            new = [
                delta(
                    text,
                    index,
                    finish if is_last else None,
                    token_ids=(2000 + step,),
                    logprobs=None
                    if params.top_logprobs is None
                    else tuple(
                        entry(2000 + i, data, _logprob(logprobs, i) - index, params.top_logprobs)
                        for i, data in (waiting if text or is_last else ())
                    ),
                )
                for index in range(params.n)
            ]
            if text:
                waiting.clear()
            items.append(output(request, *new, finished=is_last))
        return items

    return play


def entry(token_id: int, data: bytes, logprob: float, num_top: int) -> LogprobEntry:
    top = [
        TopLogprob(1000 + i, other.decode(errors="replace"), other, -0.25 - i)
        for i, other in enumerate(OTHERS)
    ]
    text = data.decode(errors="replace")
    return LogprobEntry(token_id, text, data, logprob, tuple(top[:num_top]))


def _logprob(logprobs: Sequence[float], position: int) -> float:
    return logprobs[position] if position < len(logprobs) else -0.5 - position
