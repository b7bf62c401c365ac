"""The requests of docs/images.md are answered by a model that sees."""

import base64
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from stonechat_models import AsyncEngine, EngineConfig
from tests.models.vision_models import save_vision_model
from tests.server.live import live_server

PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- images: (\w+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
MODEL = "Qwen3-VL-2B-Instruct"
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save_vision_model(tmp_path_factory.mktemp("model") / "smolvlm", "smolvlm")
    (folder / "generation_config.json").write_text('{"temperature": 0.0}')
    config = EngineConfig(model=str(folder), backend="transformers", device="cpu", threads=1)
    engine = AsyncEngine.from_config(config, lambda _: None)
    with live_server(engine, served_model_name=[MODEL]) as server:  # type: ignore[arg-type]
        yield server.url


@pytest.fixture(autouse=True)
def _photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    Image.new("RGB", (300, 200), "orange").save("photo.jpg")


def test_the_examples_are_those_that_are_tested() -> None:
    assert sorted(EXAMPLES) == ["chat", "messages", "openai", "responses"]
    assert PAGE.count("http://127.0.0.1:8000") == len(EXAMPLES)


@pytest.mark.parametrize("name", ["openai", "responses", "messages"])
def test_the_program_prints_an_answer(
    name: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program = EXAMPLES[name].replace(ADDRESS, url)
    exec(compile(program, f"images.md: {name}", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed.strip()
    if name == "openai":
        num_tokens = int(re.findall(r"(\d+) tokens of the image", printed)[0])
        assert num_tokens >= 16


def test_the_request_by_curl_is_answered(url: str) -> None:
    command = shlex.split(EXAMPLES["chat"])
    assert command[:2] == ["curl", "-sS"]
    body = json.loads(command[command.index("-d") + 1])
    picture = base64.b64decode(body["messages"][0]["content"][0]["image_url"]["url"][22:])
    Path("squares.png").write_bytes(picture)
    image = Image.open("squares.png").convert("RGB")
    assert image.size == (16, 16)
    assert image.getpixel((0, 0)) == (208, 48, 32)
    assert image.getpixel((15, 15)) == (32, 96, 208)
    answer = httpx.post(command[2].replace(ADDRESS, url), json=body, timeout=60).json()
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] >= 16
    assert answer["choices"][0]["message"]["content"].strip()
