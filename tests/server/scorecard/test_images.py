"""The scorecard's checks of images, against servers that see, half see, or are blind."""

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from stonechat_server.scorecard import images
from stonechat_server.scorecard.outcome import CHECKS, HONOURED, Finding, Verdict
from stonechat_server.scorecard.report import Scorecard, as_json, details, rows
from stonechat_server.scorecard.server import EYES, Answer, takes

from .test_scorecard import FULL, Body, error, find

MAX_PIXELS = 50_000_000
RUNS = [check.run for check in CHECKS if check.part == "images"]


def parts_of(body: Body) -> list[Body]:
    contents = [message["content"] for message in body["messages"]]
    return [part for content in contents if isinstance(content, list) for part in content]


def sees(body: Body) -> Answer:
    """Reads images with Pillow: a token for each 32 x 32 pixels, at most 256 of them for `low`."""
    num_tokens, seen = 0, b""
    for part in parts_of(body):
        if part["type"] == "input_audio":
            return error(400, **FULL)
        if part["type"] != "image_url":
            continue
        _, _, data = part["image_url"]["url"].partition(",")
        try:
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            if image.width * image.height > MAX_PIXELS:
                return error(400, **FULL)
            image.load()
        except (OSError, Image.DecompressionBombError):
            return error(400, **FULL)
        num_tokens += -(-image.width * image.height // 1024)
        if part["image_url"].get("detail") == "low":
            num_tokens = min(num_tokens, 256)
        seen += image.convert("RGB").tobytes()
    logprob = -(sum(seen[:300]) % 97) / 10 - 0.1
    top = {"token": "A", "logprob": logprob}
    choice = {"index": 0, "message": {"content": "A"}, "logprobs": {"content": [top]}}
    usage = {"prompt_tokens": 10 + num_tokens, "completion_tokens": 1}
    usage |= {"prompt_tokens_details": {"image_tokens": num_tokens}}
    return Answer(200, {}, json.dumps({"choices": [choice], "usage": usage}))


def blind(body: Body) -> Answer:
    """Drops whatever is no text."""
    text = [part for part in parts_of(body) if part["type"] == "text"]
    return sees({"messages": [{"content": text}]})


@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_sees_honours_all(run: Any) -> None:
    assert find(run, sees) == HONOURED


@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_drops_images_is_found_out(run: Any) -> None:
    found = find(run, blind)
    assert found.verdict in (Verdict.IGNORED, Verdict.WRONG), found


def test_a_server_that_refuses_images_is_no_server_that_ignores() -> None:
    def reply(body: Body) -> Answer:
        has_images = any(part["type"] == "image_url" for part in parts_of(body))
        return error(400, **FULL) if has_images else blind(body)

    for run in (images.one_image, images.two_images, images.tool_image, images.low_detail):
        assert find(run, reply).verdict is Verdict.REFUSED


def test_without_logprobs_it_is_not_known_whether_an_image_is_seen() -> None:
    def reply(body: Body) -> Answer:
        answer = sees(body).json()
        answer["choices"][0]["logprobs"] = None
        return Answer(200, {}, json.dumps(answer))

    assert find(images.is_seen, reply).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({}, False),
        ({"input_modalities": ["text"]}, False),
        ({"input_modalities": ["text", "image"]}, True),
        ({"architecture": {"input_modalities": ["image", "text"]}}, True),
        ({"architecture": "LlamaForCausalLM", "capabilities": None}, False),
        ({"capabilities": ["completion", "vision"]}, True),
        ({"capabilities": {"vision": True, "audio": False}}, True),
        ({"capabilities": {"vision": False}}, False),
    ],
)
def test_servers_say_in_several_ways_that_a_model_takes_images(card: Body, expected: bool) -> None:
    assert takes(card, EYES) == expected


def test_checks_that_were_not_made_are_not_shown() -> None:
    findings = [None if check.part == "images" else HONOURED for check in CHECKS]
    text = Scorecard("text", "", "m", findings)
    assert not any(row[0] == "images" for row in rows([text]))
    assert text.count(Verdict.HONOURED) == sum(finding is not None for finding in findings)
    assert details(text) == []
    stored = json.loads(as_json([text]))["servers"][0]["checks"]
    assert not any(one["group"] == "images" for one in stored)
    sight = Scorecard("sight", "", "m", [Finding(Verdict.WRONG, "why")] * len(CHECKS))
    shown = [row for row in rows([text, sight]) if row[0] == "images"]
    assert [row[2:] for row in shown] == [["", "✗"]] * len(RUNS)
