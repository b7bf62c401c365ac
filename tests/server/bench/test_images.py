"""Images in the prompts of a benchmark."""

import asyncio
import base64
import csv
import io
import json
from typing import Any

import pytest

from stonechat_server.bench.report.page import render_report
from stonechat_server.bench.report.tables import csv_text, latency_rows, rate_rows
from stonechat_server.bench.report.verdict import verdict
from stonechat_server.bench.results import BenchResult, RequestRecord, read_json, write_json
from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.summary import summarise
from stonechat_server.cli import main

from .conftest import FakeServer

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def bench(fake: FakeServer, **settings: Any) -> BenchResult:
    base = {"input_tokens": 20, "output_tokens": 4, "warmup": 0, "concurrency": (1,),
            "base_url": fake.url, "model": "good", "num_requests": 3}  # fmt: skip
    values = {**base, **settings}
    return asyncio.run(run_bench(BenchSettings.model_validate(values)))


def images_of(body: dict[str, Any]) -> list[bytes]:
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return []
    *parts, text = content
    assert text["type"] == "text"
    assert all(part["type"] == "image_url" for part in parts)
    return [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts]


@pytest.mark.parametrize("are_same", [False, True])
def test_each_prompt_has_its_images_or_all_have_the_same(fake: FakeServer, are_same: bool) -> None:
    result = bench(fake, images=2, image_size="40x30", same_image=are_same)
    sent = [body for body in fake.bodies if body["max_tokens"] == 4]
    images = [image for body in sent for image in images_of(body)]
    assert len(images) == 6
    (first,) = [b for b in fake.bodies if b["max_tokens"] == 1 and len(images_of(b)) == 1]
    assert images_of(first)[0] not in images
    assert len(set(images)) == (2 if are_same else 6)
    assert {Image.open(io.BytesIO(data)).size for data in images} == {(40, 30)}
    (level,) = result.levels
    assert level.num_images == 6
    assert level.images_per_second == pytest.approx(6 / level.seconds)
    assert result.settings["image_size"] == [40, 30]
    assert "does not report how many prompt tokens are of images" in " ".join(result.notes)
    assert read_json(write_json(result)) == result


def record(start: float, ttft: float, cached: int | None, image_tokens: int = 64) -> RequestRecord:
    return RequestRecord(
        start=start, sent=start, first_token=start + ttft, end=start + 1, prompt_tokens=90,
        completion_tokens=4, cached_tokens=cached, image_tokens=image_tokens, num_images=1,
    )  # fmt: skip


def test_times_to_the_first_token_are_told_apart_by_the_cache(fake: FakeServer) -> None:
    records = [record(0, 0.9, 0), record(1, 0.25, 64), record(2, 0.25, 80), record(3, 0.5, None)]
    level = summarise("closed", 1, [records], [], 0.1, None, None)
    assert (level.ttft.count, level.image_tokens) == (4, 256)
    assert (level.ttft_new_images.count, level.ttft_new_images.p50) == (1, 0.9)
    assert (level.ttft_cached_images.count, level.ttft_cached_images.p50) == (2, 0.25)
    result = bench(fake)
    without = rate_rows(result)[0] + [row[1] for row in latency_rows(result)]
    assert not any("image" in name for name in without)
    result.levels = [level]
    head, row = rate_rows(result)
    assert dict(zip(head, row, strict=True))["tokens/image"] == "64"
    assert dict(zip(head, row, strict=True))["images/s"] == "1.00"
    names = [row[1] for row in latency_rows(result)]
    assert names[-2:] == ["TTFT, new images", "TTFT, cached images"]
    line = "At most 1.00 images/s, at 1 in flight. First token at 1 in flight: 900 ms with new "
    assert line + "images, 250 ms with cached images (median)." in verdict(result)
    assert "TTFT, cached images" in render_report([result])
    (row_of_csv,) = csv.DictReader(io.StringIO(csv_text(result)))
    assert float(row_of_csv["ttft_cached_images_p50"]) == 0.25
    assert (row_of_csv["images_per_second"], row_of_csv["image_tokens"]) == ("1.0", "256")


def test_a_result_of_an_earlier_version_has_no_images(fake: FakeServer) -> None:
    stored = json.loads(write_json(bench(fake)))
    for level in stored["levels"]:
        for name in ("num_images", "image_tokens", "ttft_new_images", "ttft_cached_images"):
            del level[name]
    assert read_json(json.dumps(stored).encode()).levels[0].num_images == 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--images", "1", "--prompts", "x"], "--images and --prompts cannot be given together"),
        (["--images", "1", "--pp", "8"], "--images and --pp and --tg"),
        (["--same-image"], "--same-image is for --images"),
        (["--images", "1", "--image-size", "big"], "such as 1024x768, are expected"),
        (["--images", "1", "--image-size", "0x5"], "a value of more than 0 is expected"),
    ],
)
def test_settings_of_images_that_have_no_sense(
    flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *flags])
    assert text in capsys.readouterr().err
