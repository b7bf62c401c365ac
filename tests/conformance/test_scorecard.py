"""The server's own scorecard: all checks of `stonechat check` against the default model."""

import asyncio
from pathlib import Path

import pytest

from stonechat_models import AsyncEngine, EngineConfig
from stonechat_server.scorecard.command import Options, examine
from stonechat_server.scorecard.outcome import CHECKS, HONOURED
from stonechat_server.scorecard.report import details
from tests.models.vision_models import save_vision_model
from tests.server.live import live_server

from .conftest import LiveServer


@pytest.mark.nightly
def test_every_field_is_honoured(server: LiveServer) -> None:
    options = Options(model=server.model, responses=True)
    scorecard = asyncio.run(examine("ours", server.url, options))
    assert details(scorecard) == []


@pytest.mark.nightly
def test_images_are_honoured_by_a_model_that_sees(tmp_path: Path) -> None:
    folder = save_vision_model(tmp_path / "qwen2_vl", "qwen2_vl")
    config = EngineConfig(model=str(folder), backend="transformers", device="cpu", threads=1)
    engine = AsyncEngine.from_config(config, lambda _: None)
    with live_server(engine) as server:
        card = asyncio.run(examine("ours", f"{server.url}/v1", Options()))
    of_images = [found for check, found in zip(CHECKS, card.findings) if check.part == "images"]
    assert of_images == [HONOURED] * 10
