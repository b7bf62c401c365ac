"""Images are loaded together, within bounds on all requests, and only while somebody waits."""

import asyncio
import json
import socket
from concurrent.futures import Future
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import PreparedImage, TooManyImagesError
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.app import create_app
from stonechat_server.errors import APIError
from stonechat_server.images import loading
from stonechat_server.images.loading import ImageLoader
from stonechat_server.images.references import find_images
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.settings import Settings
from tests.server.bodies import URL, body
from tests.server.catalog.scripted_models import in_loop, until
from tests.server.fake_engine import FakeEngine
from tests.server.fake_images import FakeImageProcessor, image, png, user
from tests.server.live import live_server, wait_until


class SlowWeb:
    """Answers when all of `num_wanted` fetches have begun; never those of `/never`."""

    def __init__(self, num_wanted: int) -> None:
        self.num_wanted = num_wanted
        self.begun: list[str] = []
        self.num_cancelled = 0

    async def get(self, url: Any, max_bytes: int) -> bytes | str:
        self.begun.append(url.target)
        try:
            while len(self.begun) < self.num_wanted or url.target == "/never":
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if url.target == "/bad":
            return b"no image"
        return png(url.target)


def loader(web: SlowWeb | None = None, **settings: Any) -> ImageLoader:
    values: dict[str, Any] = {"allow_image_urls": ["*"], "image_fetch_timeout": 60.0} | settings
    return ImageLoader(Settings(**values), lambda *_: None, web)


def references(*paths: str) -> Any:
    parts = [image(f"https://a.example{path}") for path in paths]
    return find_images(ChatCompletionRequest(**body(messages=[user(*parts)])).messages)


def small(*sizes: int) -> Any:
    parts = [image(png("x" * size)) for size in sizes]
    return find_images(ChatCompletionRequest(**body(messages=[user(*parts)])).messages)


async def no_file(file_id: str, max_bytes: int) -> bytes:
    raise AssertionError(file_id)


@in_loop
async def test_images_are_fetched_together_and_keep_their_order() -> None:
    web, engine = SlowWeb(3), FakeEngine(image_processor=FakeImageProcessor())
    wanted = references("/1", "/2", "/3")
    await loader(web).load(wanted, engine, no_file, "m")
    assert sorted(web.begun) == ["/1", "/2", "/3"]
    assert isinstance(engine.image_processor, FakeImageProcessor)
    assert engine.image_processor.calls[0][0] == [png("/1"), png("/2"), png("/3")]
    assert all(reference.part.image is not None for reference in wanted)


@in_loop
async def test_an_error_ends_the_other_fetches() -> None:
    web, engine = SlowWeb(2), FakeEngine(image_processor=FakeImageProcessor())
    with pytest.raises(APIError) as error_info:
        await loader(web).load(references("/never", "/bad"), engine, no_file, "m")
    assert error_info.value.param == "messages[0].content[1]"
    assert web.num_cancelled == 1


@in_loop
async def test_a_cancelled_load_ends_its_fetches_and_its_preparation() -> None:
    web, processor = SlowWeb(1), FakeImageProcessor(holds=True)
    engine, images = FakeEngine(image_processor=processor), loader(web)
    fetching = asyncio.create_task(images.load(references("/never"), engine, no_file, "m"))
    preparing = asyncio.create_task(images.load(small(1), engine, no_file, "m"))
    await until(lambda: bool(web.begun and processor.futures))
    for task in (fetching, preparing):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert web.num_cancelled == 1
    assert processor.futures[0].cancelled()
    await until(lambda: not images._num_bytes)
    assert images._num_requests == 0


@in_loop
async def test_what_the_processor_still_has_counts() -> None:
    """Clients that come and leave do not fill the memory."""
    processor = FakeImageProcessor(holds=True)
    engine, images = FakeEngine(image_processor=processor), loader(max_images_size=1000)
    for number in range(1, loading.HELD_REQUESTS + 1):
        task = asyncio.create_task(images.load(small(980), engine, no_file, "m"))
        await until(lambda number=number: len(processor.futures) == number)
        processor.futures[-1].set_running_or_notify_cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert images._num_requests == 0
    with pytest.raises(RefusedError):
        await images.load(small(980), engine, no_file, "m")
    for future in processor.futures:
        future.set_result([])
    await until(lambda: not images._num_bytes)


@in_loop
async def test_too_many_requests_are_refused() -> None:
    processor = FakeImageProcessor(holds=True)
    engine, images = FakeEngine(image_processor=processor), loader()
    tasks = [
        asyncio.create_task(images.load(small(1), engine, no_file, "m"))
        for _ in range(loading.MAX_LOADING)
    ]
    await until(lambda: len(processor.futures) == loading.MAX_LOADING)
    with pytest.raises(RefusedError) as error_info:
        await images.load(small(1), engine, no_file, "m")
    assert (error_info.value.status, error_info.value.reason) == (429, "images_full")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@in_loop
async def test_the_bytes_of_all_requests_are_bounded() -> None:
    processor = FakeImageProcessor(holds=True)
    engine, images = FakeEngine(image_processor=processor), loader(max_images_size=1000)
    tasks = [
        asyncio.create_task(images.load(small(980), engine, no_file, "m"))
        for _ in range(loading.HELD_REQUESTS)
    ]
    await until(lambda: len(processor.futures) == loading.HELD_REQUESTS)
    with pytest.raises(RefusedError):
        await images.load(small(980), engine, no_file, "m")
    assert images._num_bytes == sum(len(png("x" * 980)) for _ in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@in_loop
async def test_prepared_images_count_as_long_as_their_request_is_there() -> None:
    engine, images = FakeEngine(image_processor=FakeImageProcessor()), loader(image_memory=11)
    first, second = small(1, 2), small(3)  # 4 bytes each
    await images.load(first, engine, no_file, "m")
    with pytest.raises(RefusedError) as error_info:
        await images.load(second, engine, no_file, "m")
    assert error_info.value.reason == "images_full"
    assert second[0].part.image is None
    del first
    await until(lambda: not images._num_prepared_bytes)
    await images.load(second, engine, no_file, "m")
    large = small(*range(4))  # alone, none is too large
    del second, error_info  # the traceback has it, too
    await until(lambda: not images._num_prepared_bytes)
    await images.load(large, engine, no_file, "m")
    assert images._num_prepared_bytes == 16


def test_a_request_that_has_ended_gives_its_memory_back(engine: FakeEngine) -> None:
    app = create_app(Settings(image_memory=7), engine)
    with TestClient(app, "http://127.0.0.1:8000") as client:
        for stream in (False, True, False):
            fields = body(messages=[user(image(png()))], stream=stream)
            assert client.post(URL, json=fields).status_code == 200
            wait_until(lambda: not app.state.server.images._num_prepared_bytes)
            bad = fields | {"temperature": 9, "stop": ["x"] * 65}
            assert client.post(URL, json=bad).status_code == 400


class FullProcessor:
    def prepare(self, *_: object) -> Future[list[PreparedImage]]:
        raise TooManyImagesError("too many")


@in_loop
async def test_a_processor_that_is_full_is_a_429() -> None:
    with pytest.raises(RefusedError) as error_info:
        await loader().load(small(1), FakeEngine(image_processor=FullProcessor()), no_file, "m")
    assert error_info.value.status == 429


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_client_that_leaves_ends_the_preparation(
    engine: FakeEngine, processor: FakeImageProcessor, path: str
) -> None:
    processor.holds = True
    content = json.dumps(body(messages=[user(image(png()))], stream=True)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with live_server(engine) as live:
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            connection.sendall(head.encode() + content)
            wait_until(lambda: processor.futures)
        wait_until(processor.futures[0].cancelled)
    assert engine.requests == []
