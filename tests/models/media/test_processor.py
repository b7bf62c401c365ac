"""Images are prepared in processes that limits end. What one image does hurts no other."""

import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from stonechat_models.child_process import ChildEndedError
from stonechat_models.errors import (
    EngineDeadError,
    EngineError,
    InvalidMediaError,
    TooManyMediaError,
)
from stonechat_models.media import file_processor
from stonechat_models.media import processor as module
from stonechat_models.media.hf_processor import HFProcessor
from stonechat_models.media.image_decoding import decode_image
from stonechat_models.media.processor import MediaProcessor
from stonechat_models.media.records import Answer, ImageOptions
from tests.models.vision_models import FAMILIES, save_processor, vision_tokenizer

HANG_SECONDS = 120.0
TOKEN_ID = vision_tokenizer(FAMILIES["qwen3_vl"]).convert_tokens_to_ids("<|image_pad|>")


def picture(width: int, height: int, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_processor(tmp_path_factory.mktemp("qwen3_vl") / "model", "qwen3_vl")


@pytest.fixture(scope="module")
def images(folder: Path) -> Iterator[MediaProcessor]:
    processor = MediaProcessor(folder, {"image": TOKEN_ID})
    yield processor
    processor.close()


def test_a_prepared_image(images: MediaProcessor, folder: Path) -> None:
    first, second = images.prepare([picture(96, 64), picture(64, 64)], ImageOptions()).result(
        HANG_SECONDS
    )
    assert (first.width, first.height, first.num_tokens, second.num_tokens) == (96, 64, 6, 4)
    assert first.placeholder == "<|image_pad|>"
    assert first.text == "<|image_pad|>" * 6
    tensors = first.pieces[0].tensors
    grid, values = tensors["image_grid_thw"], tensors["pixel_values"]
    assert np.frombuffer(grid.data, grid.dtype).tolist() == [1, 4, 6]
    assert (values.dtype, values.shape) == ("float32", (24, 1536))
    assert set(tensors) == {"pixel_values", "image_grid_thw"}
    here = HFProcessor(folder, "image", TOKEN_ID)  # with PyTorch, which the process does without
    _, _, arrays = here.prepare(decode_image(picture(96, 64), ImageOptions())[0])
    assert {k: v.tobytes() for k, v in arrays.items()} == {k: v.data for k, v in tensors.items()}


def test_equal_images_are_one(images: MediaProcessor) -> None:
    low = ImageOptions(detail="low")
    data = picture(600, 32)
    first, again = images.prepare([data, data], ImageOptions()).result(HANG_SECONDS)
    assert first is again
    assert images.prepare([data], ImageOptions()).result(HANG_SECONDS)[0] is first
    scaled = images.prepare([data], low).result(HANG_SECONDS)[0]
    assert scaled.content_hash != first.content_hash
    assert scaled.num_tokens < first.num_tokens
    assert (scaled.width, scaled.height) == (600, 32)


def test_no_file_has_the_hash_of_another_with_an_option(images: MediaProcessor) -> None:
    low = ImageOptions(detail="low")
    assert images._content_hash(b"a", low) != images._content_hash(b"alow", ImageOptions())
    assert images._content_hash(b"a", low) != images._content_hash(b"a", ImageOptions())


def test_only_the_patience_of_the_processor_blames_the_image(folder: Path) -> None:
    process = module.ChildProcess(module.WORKER, str(folder), str(TOKEN_ID))
    with pytest.raises(ChildEndedError) as late:
        process.ask(b"", 0.01)
    assert (late.value.signal, late.value.is_late) == (signal.SIGKILL, True)
    running = process._started()
    threading.Timer(0.05, running.kill).start()
    with pytest.raises(ChildEndedError) as killed:
        process.ask(b"", HANG_SECONDS)
    assert (killed.value.signal, killed.value.is_late) == (signal.SIGKILL, False)
    process.close()


def test_settings_of_the_processor_are_part_of_the_hash(
    images: MediaProcessor, tmp_path: Path
) -> None:
    other = save_processor(tmp_path / "other", "qwen2_vl")
    assert images._content_hash(b"a", ImageOptions()) != MediaProcessor(
        other, {"image": TOKEN_ID}
    )._content_hash(b"a", ImageOptions())


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", "empty", "is empty"),
        (b"text", "format", "is not a PNG, JPEG, WebP or GIF"),
        (picture(40, 40)[:200], "broken", "is broken: "),
        (picture(2000, 4), "unfit", "cannot be prepared for this model: absolute aspect ratio"),
        (picture(1, 1), "", ""),
    ],
)
def test_an_image_that_cannot_be_used_is_named(
    images: MediaProcessor, data: bytes, kind: str, reason: str
) -> None:
    prepared = images.prepare([picture(64, 64), data], ImageOptions())
    if not kind:
        assert prepared.result(HANG_SECONDS)[1].num_tokens > 0
        return
    with pytest.raises(InvalidMediaError) as caught:
        prepared.result(HANG_SECONDS)
    assert (caught.value.index, caught.value.kind) == (1, kind)
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("number", "is_late", "error", "message"),
    [
        (signal.SIGPROF, False, InvalidMediaError, "file 1 of the request takes too long to"),
        (signal.SIGKILL, True, InvalidMediaError, "file 1 of the request takes too long to"),
        (signal.SIGKILL, False, EngineError, "the process that prepares the file has ended"),
        (signal.SIGABRT, False, InvalidMediaError, "file 1 of the request takes too much memory"),
        (0, False, EngineError, "the process that prepares the file has ended"),
    ],
)
def test_what_ends_a_process_fails_its_image_only(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_late: bool,
    error: type[Exception],
    message: str,
) -> None:
    def end(*_: object) -> bytes:
        raise ChildEndedError(number, is_late=is_late)

    monkeypatch.setattr(module.ChildProcess, "ask", end)
    images = MediaProcessor(folder, {"image": TOKEN_ID})
    with pytest.raises(error, match=message) as caught:
        images.prepare([picture(64, 64)], ImageOptions()).result(HANG_SECONDS)
    assert type(caught.value) is error
    images.close()


def test_images_that_wait_are_bounded_and_end_with_the_processor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked, may_go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> bytes:
        is_asked.set()
        may_go_on.wait(HANG_SECONDS)
        raise ChildEndedError(signal.SIGKILL)

    monkeypatch.setattr(module.ChildProcess, "ask", hang)
    monkeypatch.setattr(file_processor, "MAX_FILES", 2)
    images = MediaProcessor(folder, {"image": TOKEN_ID}, num_workers=1)
    waiting = images.prepare([b"a", b"b"], ImageOptions())
    assert is_asked.wait(HANG_SECONDS)
    with pytest.raises(TooManyMediaError):
        images.prepare([b"c"], ImageOptions())
    again = images.prepare([b"b"], ImageOptions())  # the same image waits already
    images.close()
    may_go_on.set()
    for future in (waiting, again):
        with pytest.raises(EngineDeadError):
            future.result(HANG_SECONDS)
    with pytest.raises(EngineDeadError):
        images.prepare([b"c"], ImageOptions())


def test_a_processor_that_cannot_be_loaded_fails_all_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = msgspec.msgpack.encode(Answer(failure="it needs torchvision"))
    monkeypatch.setattr(module.ChildProcess, "ask", lambda *_: answer)
    images = MediaProcessor(folder, {"image": TOKEN_ID})
    with pytest.raises(EngineError, match="the file cannot be prepared: it needs torchvision"):
        images.prepare([b"a"], ImageOptions()).result(HANG_SECONDS)
    images.close()
