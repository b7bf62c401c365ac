"""Images on the page: attached, scaled down, shown, sent, kept and exported."""

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.server.fake_media import seeing_engine
from tests.server.live import live_server
from tests.server.live_server import LiveServer

from .conftest import script
from .driver import (
    Browser,
    Page,
    Route,
    answered,
    ask,
    bubbles_are,
    copy_as,
    delete,
    download,
    expect,
    open_conversation,
    open_tab,
    piece,
    press,
    reopen,
    stream_of,
)

REFUSAL = "its image processor needs torchvision"


def png(width: int, height: int, shade: int = 0) -> bytes:
    """A grey PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes([shade]) * width for _ in range(height)))
    parts = chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def bytes_of(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2], validate=True)


def use_model(page: Page, modalities: list[str], refusal: str = "") -> None:
    """Let the list of models say what its model reads. Without images, it has a refusal."""

    def fulfil(route: Route) -> None:
        listed = route.fetch().json()
        for card in listed["data"]:
            card["input_modalities"] = modalities
            card["stonechat"]["image_refusal"] = refusal
        route.fulfill(json=listed)

    page.route("**/v1/models", fulfil)
    page.dispatch_event("#key", "change")  # loads the list again
    title = "Attach images" if "image" in modalities else f"This model takes no images: {refusal}."
    page.wait_for_selector(f"#attach[title*='{title}']")


@pytest.fixture
def sent(page: Page) -> list[dict[str, Any]]:
    """The bodies of chat requests, each of which is answered."""
    details = {"cached_tokens": 7, "image_tokens": 64}
    usage = {"prompt_tokens": 90, "completion_tokens": 2, "prompt_tokens_details": details}
    end = [piece("stop"), {"choices": [], "usage": usage}]
    bodies = stream_of(page, [piece(content="A "), piece(content="square."), *end])
    use_model(page, ["text", "image"])
    return bodies


def attach(page: Page, folder: Path, **files: bytes) -> None:
    paths, before = [], page.locator("#files .file").count()
    for name, data in files.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(data)
    page.set_input_files("#attach-file", paths)
    expect(page.locator("#files .file")).to_have_count(before + len(files))


WIDTHS = """(widths) => {
  const images = [...document.querySelectorAll('.bubble img')];
  return images.map((image) => image.naturalWidth).join() === widths;
}"""


def test_images_are_shown_sent_before_the_text_and_counted(
    page: Page, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    small, other = png(30, 20), png(8, 8, 200)
    attach(page, tmp_path, small=small, wrong=png(5, 5), other=other)
    press(page, "Remove wrong.png")
    ask(page, "What is it?")
    answered(page)
    content = sent[-1]["messages"][-1]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert [bytes_of(part["image_url"]["url"]) for part in content[:2]] == [small, other]
    assert content[2]["text"] == "What is it?"
    expect(page.locator("#files")).to_be_hidden()
    page.wait_for_function(WIDTHS, arg="30,8")
    expect(page.locator(".stats")).to_contain_text("90 prompt tokens (64 of images, 7 cached)")


def test_a_large_photo_is_scaled_down_and_its_own_size_is_said(
    page: Page, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    attach(page, tmp_path, photo=png(4000, 1000))
    expect(page.locator("#files")).to_contain_text("4000 \u00d7 1000, sent as 2048 \u00d7 512")
    page.click("#send")
    answered(page)
    (part,) = sent[-1]["messages"][-1]["content"]
    assert png_size(bytes_of(part["image_url"]["url"])) == (2048, 512)
    page.click(".bubble .picture")
    expect(page.locator("#picture-dialog")).to_contain_text("4000 \u00d7 1000")
    page.keyboard.press("Escape")
    expect(page.locator("#picture-dialog")).to_be_hidden()


def test_a_picture_with_clear_parts_gets_a_white_ground(page: Page) -> None:
    """As JPEG, which a WebP file of a size that must be scaled becomes."""
    kind, *pixel = page.evaluate(
        """async () => {
          const { readPicture } = await import('./page/pictures.js');
          const canvas = new OffscreenCanvas(3000, 10);
          canvas.getContext('2d').fillRect(1500, 0, 1500, 10);
          const blob = await canvas.convertToBlob({ type: 'image/webp' });
          const { url } = await readPicture(new File([blob], 'a.webp', { type: 'image/webp' }));
          const bytes = Uint8Array.from(atob(url.split(',')[1]), (c) => c.charCodeAt(0));
          const context = new OffscreenCanvas(1, 1).getContext('2d');
          context.drawImage(await createImageBitmap(new Blob([bytes])), 0, 0);
          return [url.split(';')[0], ...context.getImageData(0, 0, 1, 1).data];
        }"""
    )
    assert kind == "data:image/jpeg"
    assert min(pixel) > 250


def test_images_are_kept_in_edits_branches_and_reloads(
    page: Page, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    image = png(12, 12)
    attach(page, tmp_path, kept=image)
    ask(page, "one")
    answered(page)
    press(page, "Again")
    page.wait_for_selector(".branches >> text=2/2")
    answered(page)
    press(page, "Edit")
    expect(page.locator("form.edit img")).to_have_count(1)
    page.get_by_label("Edit the question").fill("two")
    page.keyboard.press("Enter")
    bubbles_are(page, "two")
    answered(page)
    reopen(page, "one")
    bubbles_are(page, "two")
    page.wait_for_function(WIDTHS, arg="12")
    ask(page, "three")
    answered(page, 2)
    asked = [
        [bytes_of(part["image_url"]["url"]) for part in body["messages"][0]["content"][:-1]]
        for body in sent
    ]
    assert asked == [[image]] * 4
    assert page.evaluate(NUM_IMAGES) == 1  # the branches share it
    delete(page)
    assert page.evaluate(NUM_IMAGES) == 0


NUM_IMAGES = """async () => {
  const { openStore } = await import('./page/store.js');
  const { store } = await openStore();
  return new Promise((resolve) => {
    const request = store.table('images').count();
    request.onsuccess = () => resolve(request.result);
  });
}"""


def test_an_export_keeps_images_and_an_import_checks_them(
    page: Page, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    attach(page, tmp_path, map=png(9, 9))
    ask(page, "where?")
    answered(page)
    text = download(page, "Export as Markdown", tmp_path).read_text()
    assert "Image map.png (not in this file)" in text
    file = download(page, "Export as JSON", tmp_path)
    stored = json.loads(file.read_text())
    turn = stored["conversations"][0]["turns"][0]
    assert bytes_of(turn["images"][0]["url"]) == png(9, 9)
    evil = [
        "https://elsewhere.invalid/x.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:,"><b>',
        5,
    ]
    turn["images"] += [{"name": "x", "url": url} for url in evil]
    file.write_text(json.dumps(stored))
    delete(page)
    page.set_input_files("#import-file", file)
    page.wait_for_selector("text=Imported 1 conversation.")
    reopen(page, "where?")
    expect(page.locator(".bubble img")).to_have_count(1)


def test_a_model_of_text_says_why_it_takes_no_images(page: Page, tmp_path: Path) -> None:
    use_model(page, ["text"], REFUSAL)
    (tmp_path / "photo.png").write_bytes(png(4, 4))
    page.set_input_files("#attach-file", tmp_path / "photo.png")
    page.wait_for_selector(f"text=photo.png is not attached. This model takes no images: {REFUSAL}")
    expect(page.locator("#files")).to_be_hidden()


def test_a_broken_image_is_refused_in_words(
    page: Page, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(png(40, 40)[:60])
    page.set_input_files("#attach-file", tmp_path / "broken.png")
    page.wait_for_selector("text=This browser cannot read broken.png as an image.")
    expect(page.locator("#files")).to_be_hidden()


PUT_IMAGE = """async ([kind, text, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], 'shot.png', { type: 'image/png' }));
  if (text) transfer.setData('text/plain', text);
  const options = { bubbles: true, cancelable: true };
  const event = kind === 'paste'
    ? new ClipboardEvent('paste', { ...options, clipboardData: transfer })
    : new DragEvent('drop', { ...options, dataTransfer: transfer });
  document.getElementById('prompt').dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_an_image_is_pasted_or_dropped(page: Page, sent: list[dict[str, Any]], kind: str) -> None:
    data = base64.b64encode(png(6, 3)).decode()
    if kind == "paste":  # text of an office program comes with a picture of it
        page.evaluate(PUT_IMAGE, [kind, "some text", data])
    page.evaluate(PUT_IMAGE, [kind, "", data])
    page.wait_for_selector("#files >> text=6 \u00d7 3")
    expect(page.locator("#files .file")).to_have_count(1)


def test_a_full_browser_is_said_and_the_chat_goes_on(
    page: Page, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    page.evaluate(
        """() => {
          const put = IDBObjectStore.prototype.put;
          IDBObjectStore.prototype.put = function (record) {
            if (this.name !== 'images') return put.call(this, record);
            throw new DOMException('full', 'QuotaExceededError');
          };
        }"""
    )
    attach(page, tmp_path, big=png(7, 7))
    ask(page, "kept?")
    answered(page)
    expect(page.locator("#toasts")).to_contain_text("its storage is full")
    reopen(page, "kept?")
    expect(page.locator(".bubble")).to_contain_text("big.png (not kept)")
    ask(page, "and now?")
    answered(page, 2)
    assert sent[-1]["messages"][0]["content"] == "kept?"


def test_a_failed_question_comes_back_with_its_image(page: Page, tmp_path: Path) -> None:
    use_model(page, ["text", "image"])
    page.route("**/v1/chat/completions", lambda route: route.abort())
    attach(page, tmp_path, again=png(7, 7))
    ask(page, "lost?")
    page.wait_for_selector("#files .image")
    expect(page.locator("#prompt")).to_have_value("lost?")
    attach(page, tmp_path, more=png(8, 8))
    press(page, "Edit")
    expect(page.locator("form.edit img")).to_have_count(1)


def test_code_has_no_data_of_images(page: Page, sent: list[dict[str, Any]], tmp_path: Path) -> None:
    attach(page, tmp_path, code=png(7, 7))
    ask(page, "in code")
    answered(page)
    expect(page.locator("#code-data")).to_be_hidden()
    copy_as(page)
    expect(page.locator("#code-text")).to_contain_text('"data:image/png;base64,…"')
    expect(page.locator("#code-data")).to_be_visible()


OLD_DATABASE = """() => new Promise((resolve, reject) => {
  const request = indexedDB.open('stonechat', 1);
  request.onupgradeneeded = () => {
    const { result } = request;
    const table = result.createObjectStore('conversations', { keyPath: 'id' });
    table.put({ id: 'a', title: 'old one', created: 1, updated: 1, active: {} });
    const turns = result.createObjectStore('turns', { keyPath: ['conversation', 'id'] });
    turns.put({ conversation: 'a', id: 't', parent: '', created: 1, role: 'user',
      text: 'old question', files: [] });
  };
  request.onsuccess = () => { request.result.close(); resolve(); };
  request.onerror = reject;
})"""


def test_a_database_of_the_version_before_is_kept(
    browser: Browser, open_server: LiveServer
) -> None:
    with open_tab(browser, open_server, "docs", ready=".opblock") as tab:
        tab.evaluate(OLD_DATABASE)
        tab.goto(open_server.url)
        open_conversation(tab, "old one")
        bubbles_are(tab, "old question")


def test_a_model_reads_what_was_attached(browser: Browser, tmp_path: Path) -> None:
    engine = seeing_engine(script("A square."))
    with live_server(engine) as server, open_tab(browser, server) as tab:
        tab.wait_for_selector("#attach[title^='Attach images']")
        attach(tab, tmp_path, square=png(20, 20))
        ask(tab, "What is it?")
        answered(tab)
        expect(tab.locator(".stats")).to_contain_text("(8 of images, 3 cached)")
        tab.click("#card summary")
        expect(tab.locator("#card-rows")).to_contain_text("text, image")
    (image,) = engine.requests[-1].media
    assert image.num_tokens == 8
    assert "</v>What is it?" in engine.prompt
