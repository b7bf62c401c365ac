"""Images are loaded together, within bounds on all requests, and only while somebody waits."""

import asyncio
import gc
import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from stonechat_models import ImageOptions, PreparedMedia, TooManyMediaError
from stonechat_server.admission.refusals import RefusedError
from stonechat_server.app import create_app
from stonechat_server.errors import APIError
from stonechat_server.media import loading
from stonechat_server.media.budget import busy
from stonechat_server.media.loading import MediaLoader
from stonechat_server.media.references import MediaReference, find_media
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.settings import Settings
from tests.server.bodies import URL, body
from tests.server.catalog.scripted_models import in_loop, until
from tests.server.fake_engine import FakeEngine, model_info
from tests.server.fake_media import IMAGES, FakeMediaProcessor, image, png, prepared, user
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


def seeing(processor: FakeMediaProcessor) -> FakeEngine:
    return FakeEngine(model=model_info(images=IMAGES), media_processor=processor)


def loader(web: SlowWeb | None = None, **settings: Any) -> MediaLoader:
    values: dict[str, Any] = {"allow_image_urls": ["*"], "image_fetch_timeout": 60.0} | settings
    return MediaLoader(Settings(**values), lambda *_, **__: None, web)


def references(*paths: str) -> Any:
    parts = [image(f"https://a.example{path}") for path in paths]
    return find_media(ChatCompletionRequest(**body(messages=[user(*parts)])).messages)


def small(*sizes: int) -> Any:
    parts = [image(png("x" * size)) for size in sizes]
    return find_media(ChatCompletionRequest(**body(messages=[user(*parts)])).messages)


async def no_file(file_id: str, max_bytes: int) -> bytes:
    raise AssertionError(file_id)


@in_loop
async def test_images_are_fetched_together_and_keep_their_order() -> None:
    web, engine = SlowWeb(3), seeing(FakeMediaProcessor())
    wanted = references("/1", "/2", "/3")
    await loader(web).load(wanted, engine, no_file, "m")
    assert sorted(web.begun) == ["/1", "/2", "/3"]
    assert isinstance(engine.media_processor, FakeMediaProcessor)
    files = [file for call in engine.media_processor.calls for file in call[0]]
    assert files == [png("/1"), png("/2"), png("/3")]
    assert all(options.among_others for _, options in engine.media_processor.calls)
    expected = [prepared(file, ImageOptions()).content_hash for file in files]
    assert [r.part.media.content_hash for r in wanted] == expected


@in_loop
async def test_an_error_ends_the_other_fetches() -> None:
    web, engine = SlowWeb(2), seeing(FakeMediaProcessor())
    with pytest.raises(APIError) as error_info:
        await loader(web).load(references("/never", "/bad"), engine, no_file, "m")
    assert error_info.value.param == "messages[0].content[1]"
    assert web.num_cancelled == 1


@in_loop
async def test_a_cancelled_load_ends_its_fetches_and_its_preparation() -> None:
    web, processor = SlowWeb(1), FakeMediaProcessor(holds=True)
    engine, images = seeing(processor), loader(web)
    fetching = asyncio.create_task(images.load(references("/never"), engine, no_file, "m"))
    preparing = asyncio.create_task(images.load(small(1), engine, no_file, "m"))
    await until(lambda: bool(web.begun and processor.futures))
    for task in (fetching, preparing):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert web.num_cancelled == 1
    assert processor.futures[0].cancelled()
    await until(lambda: not images.files.num_bytes)
    assert images._num_requests == 0


@in_loop
async def test_what_the_processor_still_has_counts() -> None:
    """Clients that come and leave do not fill the memory."""
    processor = FakeMediaProcessor(holds=True)
    engine, images = seeing(processor), loader(max_images_size=1000)
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
    await until(lambda: not images.files.num_bytes)


@in_loop
async def test_too_many_requests_are_refused() -> None:
    processor = FakeMediaProcessor(holds=True)
    engine, images = seeing(processor), loader()
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
    processor = FakeMediaProcessor(holds=True)
    engine, images = seeing(processor), loader(max_images_size=1000)
    tasks = [
        asyncio.create_task(images.load(small(980), engine, no_file, "m"))
        for _ in range(loading.HELD_REQUESTS)
    ]
    await until(lambda: len(processor.futures) == loading.HELD_REQUESTS)
    with pytest.raises(RefusedError):
        await images.load(small(980), engine, no_file, "m")
    assert images.files.num_bytes == sum(len(png("x" * 980)) for _ in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@in_loop
async def test_files_count_while_others_of_their_request_are_read() -> None:
    web = SlowWeb(1)
    engine = seeing(FakeMediaProcessor())
    images = loader(web, max_images_size=1000)
    parts = [image(png("x" * 900)), image("https://a.example/never")]
    wanted = [
        find_media(ChatCompletionRequest(**body(messages=[user(*parts)])).messages)
        for _ in range(loading.HELD_REQUESTS + 1)
    ]
    tasks = [asyncio.create_task(images.load(w, engine, no_file, "m")) for w in wanted[1:]]
    await until(lambda: images.files.num_bytes == loading.HELD_REQUESTS * len(png("x" * 900)))
    with pytest.raises(RefusedError) as error_info:
        await images.load(wanted[0], engine, no_file, "m")
    assert error_info.value.param is None
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert images.files.num_bytes == 0


class SlowHash(FakeMediaProcessor):
    """Takes files only when it may."""

    def __init__(self) -> None:
        super().__init__(holds=True)
        self.has_begun, self.may_go = Event(), Event()

    def prepare(self, *arguments: Any) -> Future[list[PreparedMedia]]:
        self.has_begun.set()
        assert self.may_go.wait(60)
        return super().prepare(*arguments)


@in_loop
async def test_a_file_counts_although_nobody_waits_until_the_processor_has_it() -> None:
    processor = SlowHash()
    engine, images = seeing(processor), loader()
    task = asyncio.create_task(images.load(small(900), engine, no_file, "m"))
    await until(processor.has_begun.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    processor.may_go.set()
    await until(lambda: bool(processor.futures))
    assert images.files.num_bytes == len(png("x" * 900))
    processor.futures[0].set_result([])
    await until(lambda: not images.files.num_bytes)


@in_loop
async def test_prepared_images_count_until_their_request_ends() -> None:
    engine, images = seeing(FakeMediaProcessor()), loader(image_memory=11)
    first, second = small(1, 2), small(3)  # 4 bytes each
    await images.load(first, engine, no_file, "m")
    with pytest.raises(RefusedError) as error_info:
        await images.load(second, engine, no_file, "m")
    assert error_info.value.reason == "images_full"
    assert second[0].part.media is None
    for _ in range(2):  # the second time nothing is left to give back
        images.release(first)
        assert images.prepared.num_bytes == 0
    await images.load(second, engine, no_file, "m")
    assert images.prepared.num_bytes == 4


@in_loop
async def test_one_request_has_no_more_than_the_memory_either() -> None:
    processor = FakeMediaProcessor()
    engine, images = seeing(processor), loader(image_memory=11)
    large = small(*range(32))
    with pytest.raises(APIError) as error_info:
        await images.load(large, engine, no_file, "m")
    error = error_info.value
    assert (error.status, error.code, error.param) == (400, "image_too_large", "messages")
    assert "--image-memory" in error.message
    assert images.prepared.num_bytes == 8
    assert len(processor.calls) < 16  # the rest are not begun
    images.release(large)
    assert images.prepared.num_bytes == 0
    await until(lambda: not images.files.num_bytes)


@contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_has_ended_gives_its_memory_back(engine: FakeEngine, stream: bool) -> None:
    """At once, whatever its end was: nothing waits for a collection of garbage."""
    app = create_app(Settings(image_memory=11), engine)
    images = app.state.server.media
    long, broken = image(png(num_tokens=100_000)), image(png("broken"))
    endings: list[tuple[str, list[Any], dict[str, Any], int]] = [
        (URL, [image(png())], {}, 200),
        (URL, [long], {}, 400),
        (URL, [image(png()), broken], {}, 400),
        (URL, [image(png())], {"temperature": 9}, 400),
        ("/tokenize", [image(png())], {}, 200),
        ("/tokenize", [image(png()), broken], {}, 400),
    ]
    with TestClient(app, "http://127.0.0.1:8000") as client, no_collection():
        for path, parts, fields, status in 2 * endings:
            sent = body(messages=[user(*parts)], stream=stream, **fields)
            assert client.post(path, json=sent).status_code == status
            wait_until(lambda: not images.prepared.num_bytes)
        wait_until(lambda: not images.files.num_bytes)
        assert images._num_requests == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_image_leaves_nothing_in_memory(
    engine: FakeEngine, processor: FakeMediaProcessor, stream: bool
) -> None:
    """No error keeps the frames that it went through, nor is kept by them."""
    app = create_app(Settings(max_image_size=1000), engine)
    files = png("x" * 50_000), png("broken"), png(num_tokens=100_000)
    with TestClient(app, "http://127.0.0.1:8000") as client, no_collection():
        for file in files:
            sent = body(messages=[user(image(file))], stream=stream)
            assert client.post(URL, json=sent).status_code == 400
            processor.futures.clear()
            assert [o for o in gc.get_objects() if type(o) is MediaReference] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_gets_no_place_leaves_no_image_in_memory(
    engine: FakeEngine, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise busy()

    app = create_app(Settings(), engine)
    monkeypatch.setattr(app.state.server.sole.admission, "admit", refuse)
    with TestClient(app, "http://127.0.0.1:8000") as client, no_collection():
        sent = body(messages=[user(image(png()))], stream=stream)
        assert client.post(URL, json=sent).status_code == 429
        assert app.state.server.media.prepared.num_bytes == 0
        left = [o for o in gc.get_objects() if type(o) is PreparedRequest]
        assert [prompt for prompt in left if prompt.media] == []


@pytest.mark.parametrize("path", [URL, "/tokenize"])
@pytest.mark.parametrize("of_client", [False, True])
def test_the_deadline_covers_the_loading(
    engine: FakeEngine, processor: FakeMediaProcessor, path: str, of_client: bool
) -> None:
    processor.holds = True
    app = create_app(Settings(request_timeout=9 if of_client else 0.05), engine)
    headers = {"X-Request-Timeout": "0.05"} if of_client else {}
    with TestClient(app, "http://127.0.0.1:8000") as client:
        response = client.post(path, json=body(messages=[user(image(png()))]), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert app.state.server.lifecycle.num_running == 0


def test_a_request_whose_images_are_loaded_may_finish_in_a_drain(
    engine: FakeEngine, processor: FakeMediaProcessor
) -> None:
    processor.holds = True
    answers: list[httpx.Response] = []

    def ask() -> None:
        sent = body(messages=[user(image(png()))])
        answers.append(httpx.post(live.url + URL, json=sent, timeout=60))

    with live_server(engine) as live:
        client = Thread(target=ask)
        client.start()
        wait_until(lambda: processor.futures)
        live.services.lifecycle.begin_drain()
        assert not live.services.lifecycle.is_drained()
        processor.futures[0].set_result([prepared(png(), ImageOptions())])
        client.join(60)
        wait_until(live.services.lifecycle.is_drained)
    assert answers[0].status_code == 200


class FullProcessor:
    def prepare(self, *_: object) -> Future[list[PreparedMedia]]:
        raise TooManyMediaError("too many")


@in_loop
async def test_a_processor_that_is_full_is_a_429() -> None:
    with pytest.raises(RefusedError) as error_info:
        await loader().load(small(1), seeing(FullProcessor()), no_file, "m")
    assert error_info.value.status == 429


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_client_that_leaves_ends_the_preparation(
    engine: FakeEngine, processor: FakeMediaProcessor, path: str
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
