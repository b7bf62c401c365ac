"""Tiny real models behind the whole server: plain transformers' prompts and answers, by HTTP."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from stonechat_models import AsyncEngine, EngineConfig
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.models.media.prompts import VisionModel, noise
from tests.server.bodies import ask
from tests.server.fake_media import data_url, image, user

FAMILIES = [
    "qwen3_vl",
    *(pytest.param(n, marks=pytest.mark.nightly) for n in ("smolvlm", "gemma3")),
]
SIZES = ((64, 48), (40, 90))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VisionModel:
    return VisionModel(tmp_path_factory.mktemp("vision") / request.param, request.param)


@pytest.fixture(scope="module")
def client(model: VisionModel) -> Iterator[TestClient]:
    folder = model.module.name_or_path
    config = EngineConfig(model=folder, device="cpu", dtype="float32", max_model_len=4096)
    app = create_app(Settings(), AsyncEngine.from_config(config))
    with TestClient(app, "http://127.0.0.1:8000") as client:
        yield client


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_answer_is_that_of_plain_transformers(client: TestClient, model: VisionModel) -> None:
    pictures = [noise(size, seed) for seed, size in enumerate(SIZES)]
    parts = [image(data_url(png(picture))) for picture in pictures]
    messages = [user("Compare ", parts[0], " with "), user(parts[1], "!")]
    texts: Any = [["Compare ", 0, " with "], [1, "!"]]
    plain = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": item} if isinstance(item, str) else {"type": "image"}
                for item in items
            ],
        }
        for items in texts
    ]
    processor = model.processor._processor
    rendered = processor.tokenizer.apply_chat_template(
        plain, chat_template=processor.chat_template, add_generation_prompt=True, tokenize=False
    )
    prompt = model.prompt(rendered, *pictures)
    tokens, logprobs = model.reference(prompt, 8)
    fields = {
        "temperature": 0,
        "max_completion_tokens": 8,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    answer = ask(
        client, model=None, messages=messages, return_token_ids=True, logprobs=True, **fields
    )
    assert answer["prompt_token_ids"] == prompt.token_ids
    choice = answer["choices"][0]
    assert choice["token_ids"] == tokens
    found = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert found == pytest.approx(logprobs, abs=2e-3)
    num_image = sum(image.num_tokens for image in prompt.media)
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == num_image
    again = ask(client, model=None, messages=messages, return_token_ids=True, **fields)
    assert again["choices"][0]["token_ids"] == tokens
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > num_image // 2
