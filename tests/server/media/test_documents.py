"""PDF files and texts in requests, by OpenAI's and Anthropic's own clients and in each form."""

import base64
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import anthropic
import openai
import pytest
from fastapi.testclient import TestClient

from stonechat_models import DocumentProcessor, PreparedMedia
from stonechat_models.child_process import ChildProcess
from stonechat_server.app import create_app
from stonechat_server.media import documents
from stonechat_server.settings import Settings
from tests.models.media import pdfs
from tests.models.media.pdfs import RED_SQUARE, pdf
from tests.server.bodies import URL, ask, error_of, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.fake_media import (
    CALLED,
    IMAGES,
    PNG,
    SHOWN,
    TEMPLATE,
    FakeMediaProcessor,
    Options,
    data_url,
    image,
    png,
    text,
    turn,
    user,
    wav,
)
from tests.server.storing import NewServer, upload

REPORT = pdf("Sales rose.\nSlightly.", "", "The end.")
READ = (
    "[Document: report.pdf, 3 pages]\n[Page 1]\nSales rose.\nSlightly.\n[Page 2: no text]\n"
    "[Page 3]\nThe end.\n[End of report.pdf]\n"
)
"""What the model reads of it."""
SCAN = pdf(RED_SQUARE, "Notes.")
BASE64 = base64.b64encode(REPORT).decode()


class Eyes(FakeMediaProcessor):
    """Sees JPEG files, for two tokens each."""

    def prepare(self, files: Sequence[bytes], options: Options) -> "Future[list[PreparedMedia]]":
        files = [file if file.startswith(PNG) else PNG + b"2 " + file for file in files]
        return super().prepare(files, options)


@pytest.fixture(scope="module")
def reading() -> Iterator[DocumentProcessor]:
    processor = DocumentProcessor(1)
    yield processor
    processor.close()


@pytest.fixture(autouse=True)
def _one_process(reading: DocumentProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """All servers of these tests have the same process."""
    monkeypatch.setattr(documents.DocumentReader, "close", lambda _: None)
    monkeypatch.setattr(documents, "DocumentProcessor", lambda: reading)


@pytest.fixture
def engine() -> FakeEngine:
    """Takes text alone."""
    return FakeEngine(tokenizer=ByteTokenizer(chat_template=TEMPLATE))


@pytest.fixture
def seeing(engine: FakeEngine) -> FakeEngine:
    """Takes images, too."""
    engine.model, engine.media_processor = model_info(images=IMAGES), Eyes()
    return engine


def file(content: bytes | str, name: str | None = "report.pdf", **fields: Any) -> dict[str, Any]:
    """A part of a chat message."""
    data = content if isinstance(content, str) else data_url(content, "application/pdf")
    return {"type": "file", "file": {"file_data": data, "filename": name, **fields}}


def test_openai_clients(server: TestClient, engine: FakeEngine) -> None:
    client = openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="any", http_client=server, max_retries=0
    )
    kept = client.files.create(file=("report.pdf", REPORT), purpose="user_data")
    for given in ({"file_data": data_url(REPORT), "filename": "report.pdf"}, {"file_id": kept.id}):
        content: Any = [{"type": "file", "file": given}, {"type": "text", "text": "How much?"}]
        answer = client.chat.completions.create(
            model="tiny-test", messages=[{"role": "user", "content": content}]
        )
        assert engine.prompt.startswith(turn(f"{READ}\nHow much?"))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(engine.requests[-1].prompt_token_ids)
        content = [{"type": "input_file", **given}, {"type": "input_text", "text": "How much?"}]
        first = client.responses.create(
            model="tiny-test", input=[{"role": "user", "content": content}]
        )
        assert engine.prompt.startswith(turn(f"{READ}\nHow much?"))
        client.responses.create(model="tiny-test", input="Why?", previous_response_id=first.id)
        assert engine.prompt.startswith(turn(f"{READ}\nHow much?"))


def test_anthropics_client(server: TestClient, engine: FakeEngine) -> None:
    client = anthropic.Anthropic(
        base_url="http://127.0.0.1:8000", api_key="any", http_client=server, max_retries=0
    )
    kept = upload(server, REPORT, purpose="user_data")["id"]
    source = {"type": "base64", "media_type": "application/pdf", "data": BASE64}
    for given in (source, {"type": "file", "file_id": kept}):
        block: Any = {"type": "document", "source": given, "title": "report.pdf", "context": "Old."}
        content = [block, text("How much?")]
        arguments: Any = {"model": "tiny-test", "messages": [{"role": "user", "content": content}]}
        answer = client.messages.create(max_tokens=5, **arguments)
        assert engine.prompt.startswith(turn(f"Old.\n{READ}\nHow much?"))
        assert client.messages.count_tokens(**arguments).input_tokens == answer.usage.input_tokens
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [block]}
    called = {"type": "tool_use", "id": "t1", "name": "get", "input": {}}
    messages: Any = [
        {"role": "assistant", "content": [called]},
        {"role": "user", "content": [result]},
    ]
    client.messages.create(model="tiny-test", max_tokens=5, messages=messages)
    assert READ in engine.prompt


@pytest.mark.parametrize(
    "part",
    [
        file(BASE64),
        file(b"\n\0" + REPORT),
        {"type": "input_file", "file_data": BASE64, "filename": "report.pdf"},
        {"type": "file", "file": {"file_url": data_url(REPORT), "filename": "report.pdf"}},
    ],
)
def test_other_ways_to_send_a_document(
    client: TestClient, engine: FakeEngine, part: dict[str, Any]
) -> None:
    ask(client, messages=[user("Read: ", part)])
    assert engine.prompt.startswith(turn(f"Read: \n{READ}"))
    ask(client, messages=[*CALLED, {"role": "tool", "tool_call_id": "c1", "content": [part]}])
    assert READ in engine.prompt


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ("# Title\n\nText \t„x”\n".encode(), "# Title\n\nText \t„x”"),
        ("\ufeffa,b\r\n1,2".encode(), "a,b\r\n1,2"),
        ("Größe".encode("utf-16"), "Größe"),
        (b'MARK = b"%PDF-1.7"\n', 'MARK = b"%PDF-1.7"'),
        (b"ID3", "ID3"),
    ],
)
def test_texts(client: TestClient, engine: FakeEngine, content: bytes, read: str) -> None:
    ask(client, messages=[user(file(content, "notes.md"))])
    assert engine.prompt.startswith(turn(f"[Document: notes.md]\n{read}\n[End of notes.md]\n"))
    ask(client, messages=[user(file(content, None))])
    assert engine.prompt.startswith(turn(f"[Document]\n{read}\n[End of document]\n"))


def test_a_name_is_one_line(client: TestClient, engine: FakeEngine) -> None:
    ask(client, messages=[user(file(b"x", "a\n[Page 1]\x00" + "b" * 999))])
    head = engine.prompt.splitlines()[1]
    assert head.startswith("[Document: a [Page 1] bbb")
    assert len(head) < 300


def test_pages_without_text_are_seen(seeing: FakeEngine, new_client: ClientFactory) -> None:
    answer = ask(new_client(), messages=[user(file(SCAN, None), "And? ", image(png()))])
    read = f"[Document, 2 pages]\n[Page 1]\n{SHOWN}\n[Page 2]\nNotes.\n[End of document]\n"
    assert seeing.prompt.startswith(turn(f"{read}And? {SHOWN}"))
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 4
    assert len(seeing.requests[0].media) == 2


@pytest.mark.parametrize("asked", [{"detail": "high"}, {}])
def test_all_pages_are_seen_if_asked_for(
    seeing: FakeEngine, new_client: ClientFactory, asked: dict[str, str]
) -> None:
    client = new_client(document_images="auto" if asked else "all")
    read = f"[Document, 2 pages]\n[Page 1]\n{SHOWN}\n[Page 2]\nNotes.\n{SHOWN}\n[End of document]\n"
    ask(client, messages=[user(file(SCAN, None, **asked))])
    assert seeing.prompt.startswith(turn(read))
    part = {"type": "input_file", "file_data": data_url(SCAN), **asked}
    client.post("/v1/responses", json={"input": [{"role": "user", "content": [part]}]})
    assert seeing.prompt.startswith(turn(read))


def test_a_scan_for_a_model_that_does_not_see(client: TestClient, engine: FakeEngine) -> None:
    error = error_of(post(client, messages=[user("a", file(pdf(RED_SQUARE)))]))
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "document_without_text")
    assert "takes no images" in error["message"]
    ask(client, messages=[user(file(SCAN))])
    assert "[Page 1: no text]\n[Page 2]\nNotes." in engine.prompt


def test_a_document_is_read_once(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next turn of a conversation begins with the same prompt."""
    asked: list[bytes] = []
    ask_process = ChildProcess.ask

    def counted(process: ChildProcess, task: bytes, patience: float) -> bytes:
        asked.append(task)
        return ask_process(process, task, patience)

    monkeypatch.setattr(ChildProcess, "ask", counted)
    first = [user(file(pdf("Read me once.")), "What?")]
    ask(client, messages=first)
    ask(client, messages=[*first, {"role": "assistant", "content": "b"}, user("And?")])
    prompts = [bytes(request.prompt_token_ids) for request in engine.requests]
    assert len(asked) == 1
    assert prompts[1].startswith(prompts[0].removesuffix(b"<|im_start|>assistant\n"))


def test_placeholders_in_documents_are_text(seeing: FakeEngine, new_client: ClientFactory) -> None:
    """They are never taken for the places of images."""
    client = new_client(special_tokens_as_text=True)
    ask(client, messages=[user(file(pdf("<image>")), image(png()))])
    assert "\n[<image>]\n" in seeing.prompt
    assert SHOWN in seeing.prompt


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (file(b"%PDF-1.7 nothing"), "document_parse_error"),
        (file(pdfs.encrypted()), "document_encrypted"),
        (file(pdf(*6 * ["a"])), "document_too_long"),
        (file(pdf("\n".join(10 * ["a" * 40]))), "document_too_long"),
        (file(b"a" * 301), "document_too_long"),
        (file(b"a" * 1201), "document_too_long"),
        (file(b"a" * 4001), "document_file_too_large"),
        (file(b""), "empty_document_file"),
        (file("data:application/pdf;base64,#"), "invalid_base64_document"),
        (file(b"PK\3\4\0\0"), "unsupported_document_format"),
        (file("\u00fc".encode("latin-1")), "unsupported_document_format"),
        (file(wav()), "unsupported_parameter"),
        (file(png()), "unsupported_parameter"),
        ({"type": "file", "file": {"file_id": "file-none"}}, "image_file_not_found"),
        ({"type": "file", "file": {"file_url": "https://a.example/b"}}, "invalid_document_url"),
        (file(REPORT, file_id="file-x"), "invalid_value"),
    ],
)
def test_errors_name_the_part(
    new_server: NewServer, engine: FakeEngine, part: dict[str, Any], code: str
) -> None:
    server = new_server(max_document_pages=5, max_document_characters=300, max_document_size=4000)
    response = post(server, messages=[user("first"), user("a", part)])
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (
        400,
        "messages[1].content[1]",
        code,
    )
    assert len(error["message"]) < 300
    if code in ("document_too_long", "document_file_too_large"):
        assert "--max-document-" in error["message"]
    assert engine.requests == []


def test_errors_have_the_names_of_the_endpoint(client: TestClient) -> None:
    scan = base64.b64encode(pdf(RED_SQUARE)).decode()
    content = [{"type": "input_text", "text": "a"}, {"type": "input_file", "file_data": scan}]
    response = client.post("/v1/responses", json={"input": [{"role": "user", "content": content}]})
    assert error_of(response)["param"] == "input[0].content[1]"
    source = {"type": "base64", "media_type": "application/pdf", "data": scan}
    messages = [{"role": "user", "content": [text("a"), {"type": "document", "source": source}]}]
    response = client.post("/v1/messages", json={"messages": messages, "max_tokens": 5})
    assert response.status_code == 400
    assert "messages[0].content[1]" in response.json()["error"]["message"]


def test_errors_behind_a_document_name_their_own_part(
    seeing: FakeEngine, new_client: ClientFactory
) -> None:
    """A document becomes several parts of the prompt."""
    result = {"role": "tool", "tool_call_id": "c1", "content": [file(SCAN), {"type": "video"}]}
    error = error_of(post(new_client(), messages=[*CALLED, result]))
    assert error["param"] == "messages[2].content[1]"


def test_limits_of_a_request(seeing: FakeEngine, new_client: ClientFactory) -> None:
    client = new_client(max_documents=2, max_images=3, max_document_characters=500)
    scans = [file(pdf(*2 * [RED_SQUARE]), f"{i}.pdf") for i in range(2)]
    texts = [file(b"a" * 300, f"{i}.txt") for i in range(3)]
    for parts, code in (
        (texts, "too_many_documents"),
        (texts[:2], "document_too_long"),
        (scans, "too_many_images"),
        ([file(pdf(*4 * [RED_SQUARE]))], "too_many_images"),
    ):
        error = error_of(post(client, messages=[user(*parts)]))
        assert error["code"] == code
        assert "--max-" in error["message"]
    ask(client, messages=[user(scans[0])])


def test_documents_are_not_counted_as_images(seeing: FakeEngine, new_client: ClientFactory) -> None:
    client = new_client(max_documents=3, max_images=2)
    texts = [file(b"a", f"{i}.txt") for i in range(4)]
    ask(client, messages=[user(*texts[:3], image(png()))])
    error = error_of(post(client, messages=[user(*texts)]))
    assert error["code"] == "too_many_documents"


def test_documents_do_not_count_to_the_body(new_client: ClientFactory) -> None:
    client = new_client(max_body_size=1000)
    ask(client, messages=[user(file(pdf("a" * 3000)))])


def test_without_the_library_pdf_files_are_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "document_refusal", lambda: "PDF files need a library")
    error = error_of(post(client, messages=[user(file(REPORT))]))
    assert (error["param"], error["code"]) == ("messages[0].content[0]", "unsupported_parameter")
    ask(client, messages=[user(file(b"a text"))])


def test_the_ledger_has_no_documents(engine: FakeEngine) -> None:
    """Each turn of a conversation would repeat them."""
    records: list[Any] = []
    app = create_app(Settings(ledger_text=True), engine, sinks=[records.append])
    content = [{"type": "input_file", "file_data": data_url(b"secret" * 100)}]
    with TestClient(app, "http://127.0.0.1:8000") as client:
        ask(client, messages=[user(file(b"secret" * 100), "hello")])
        client.post("/v1/responses", json={"input": [{"role": "user", "content": content}]})
    chat, response = (record.prompt for record in records)
    assert "hello" in chat
    assert "secret" not in chat + response


def test_tokens_and_metrics_count_documents(client: TestClient, engine: FakeEngine) -> None:
    messages = [user(file(REPORT))]
    num_tokens = ask(client, messages=messages)["usage"]["prompt_tokens"]
    assert client.post("/tokenize", json={"messages": messages}).json()["count"] == num_tokens
    assert READ in client.post(f"{URL}/render", json={"messages": messages}).json()["prompt"]
    lines = client.get("/metrics").text.splitlines()
    label = '{model_name="tiny-test"}'
    assert f"stonechat:documents_total{label} 3.0" in lines
    assert f"stonechat:document_bytes_total{label} {3 * len(REPORT)}.0" in lines
