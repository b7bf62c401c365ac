"""Tiny real models that take videos behind the whole server: plain transformers' answers."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from stonechat_models import AsyncEngine, EngineConfig
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.models.media.video_prompts import VideoModel
from tests.models.media.videos import pictures, video_file
from tests.server.bodies import ask, error_of, post
from tests.server.fake_media import user, video

FAMILIES = [
    "qwen3_vl",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in ("qwen2_5_vl", "internvl")),
]
GREEDY = {
    "model": None,
    "temperature": 0,
    "max_completion_tokens": 8,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "return_token_ids": True,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    return VideoModel(tmp_path_factory.mktemp("video") / request.param, request.param)


@pytest.fixture(scope="module")
def client(model: VideoModel) -> Iterator[TestClient]:
    config = EngineConfig(
        model=str(model.folder), device="cpu", dtype="float32", max_model_len=4096
    )
    app = create_app(Settings(), AsyncEngine.from_config(config))
    with TestClient(app, "http://127.0.0.1:8000") as client:
        yield client


def test_the_answer_is_that_of_plain_transformers(client: TestClient, model: VideoModel) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert card["input_modalities"] == ["text", "image", "video"]
    files = [video_file(pictures(n, model.family.sizes[0])) for n in (30, 12)]
    messages = [user("What does ", video(files[0]), " show?"), user(video(files[1]), "!")]
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    turns = template.format("What does @ show?", "@!") + "<|im_start|>assistant\n"
    prompt = model.video_prompt(turns, *files)
    tokens, _ = model.reference(prompt, 8)
    answer = ask(client, messages=messages, **GREEDY)
    assert answer["prompt_token_ids"] == prompt.token_ids
    assert answer["choices"][0]["token_ids"] == tokens
    num_video = sum(piece.num_tokens for piece in prompt.media)
    assert answer["usage"]["prompt_tokens_details"]["video_tokens"] == num_video
    again = ask(client, messages=messages, **GREEDY)
    assert again["choices"][0]["token_ids"] == tokens
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > num_video // 2


def test_a_damaged_file_is_the_clients_fault(client: TestClient, model: VideoModel) -> None:
    file = video_file(pictures(30, model.family.sizes[0]))
    response = post(client, model=None, messages=[user(video(file[:300]))])
    assert (response.status_code, error_of(response)["code"]) == (400, "video_parse_error")
