"""What `stonechat serve` says of a model when it starts."""

import errno
import socket
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from stonechat_server.access.auth import access_warnings
from stonechat_server.app import create_app
from stonechat_server.cli import main
from stonechat_server.commands.serve import _misspelt_variables, _warnings, listen_problem
from stonechat_server.observability.ledger import LedgerError
from stonechat_server.prompt.chat_template import NO_TEMPLATE
from stonechat_server.prompt.template_traits import UNKNOWN_FORM
from stonechat_server.serving.stores import open_stores
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import OFF
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info


@pytest.mark.parametrize(
    ("template", "override", "expected"),
    [
        ("{{ messages[0].content }}", None, []),
        (None, None, [NO_TEMPLATE]),
        ("", None, [NO_TEMPLATE]),
        (None, "{{ messages[0].content }}", []),
        ("{{ tools }} <my_call>", None, [UNKNOWN_FORM]),
    ],
)
def test_warnings_of_the_chat_template(
    template: str | None, override: str | None, expected: list[str]
) -> None:
    engine = FakeEngine(tokenizer=ByteTokenizer(chat_template=template))
    app = create_app(Settings(ledger="off", chat_template=override), engine)
    assert _warnings(app.state.server.sole) == expected


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "PORRT", "CONFIG", "KERNELS", "SERVICE_PORT", "PORT_8000_TCP"):
        monkeypatch.setenv(f"STONECHAT_{name}", "1")
    assert list(_misspelt_variables()) == [
        "STONECHAT_PORRT is no setting; did you mean STONECHAT_PORT?"
    ]


def test_notes_of_the_models_files_are_shown_too() -> None:
    engine = FakeEngine(
        model=model_info(notes=("an adapter lies there",)),
        tokenizer=ByteTokenizer(chat_template=None),
    )
    app = create_app(Settings(ledger="off"), engine)
    assert _warnings(app.state.server.sole) == [NO_TEMPLATE, "an adapter lies there"]


def test_the_form_of_prompts_without_a_template_is_named() -> None:
    assert "`role: content`" in NO_TEMPLATE
    assert "--chat-template" in NO_TEMPLATE


@pytest.mark.parametrize(
    ("host", "needs_key", "warns"),
    [
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("::1", False, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("", False, True),
        ("192.168.1.5", False, True),
        ("0.0.0.0", True, False),
    ],
)
def test_a_server_that_is_open_to_the_network_is_warned_of(
    host: str, needs_key: bool, warns: bool
) -> None:
    warnings = access_warnings(host, needs_key)
    assert [("without an API key" in text, "--api-key" in text) for text in warnings] == (
        [(True, True)] if warns else []
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EADDRINUSE, "x"), "port 80 is in use on h: another program listens there"),
        (OSError(errno.EACCES, "x"), "port 80 is for programs of the administrator; choose one"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "this machine has no address h; use --host 127.0.0.1"),
        (socket.gaierror(-2, "x"), "this machine has no address h; use --host 127.0.0.1"),
        (OSError(errno.ENFILE, "no more files"), "cannot listen on h:80: no more files"),
    ],
)
def test_why_the_server_cannot_listen(error: OSError, expected: str) -> None:
    assert listen_problem("h", 80, error).startswith(expected)


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that cannot be written, also not by root."""
    (tmp_path / "data").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("required", [None, False])
def test_an_unwritable_data_folder_is_a_warning(unwritable: Path, required: bool | None) -> None:
    settings = Settings(ledger_required=required, files_dir=Path(OFF))
    ledger, _, notes = open_stores(settings)
    assert ledger is None
    (note,) = notes
    assert note.startswith("no usage is recorded: cannot open the usage ledger")
    assert str(unwritable) in note
    assert "Errno" not in note


def test_a_ledger_that_is_named_or_required_must_open(unwritable: Path) -> None:
    path = str(unwritable / "usage.db")
    for settings in (Settings(ledger_required=True), Settings(ledger=path)):
        with pytest.raises(LedgerError):
            open_stores(settings)
    assert open_stores(Settings(ledger=path, ledger_required=False, files_dir=Path(OFF)))[0] is None
    off = Settings(ledger="off", ledger_required=True, files_dir=Path(OFF))
    assert open_stores(off) == (None, None, [])


def test_keys_of_the_default_file_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    seen, apps = [], []

    def start(app: FastAPI, listener: object, announce: object, **_: object) -> int:
        seen.append(app.state.server.authenticator.is_open)
        apps.append(app)
        return 0

    monkeypatch.setattr("stonechat_server.serving.http_server.serve", start)
    monkeypatch.setattr("stonechat_models.AsyncEngine.from_config", lambda *_: FakeEngine())
    words = ["serve", "--port", "0", "--ledger", "off"]
    assert main(words) == 0
    assert main(["keys", "add", "alice"]) == 0
    assert main(words) == 0
    assert main([*words, "--keys-file", "off"]) == 0
    assert seen == [True, False, True]
    monkeypatch.setattr("stonechat_server.access.keys.CHECK_INTERVAL_SECONDS", 0.0)
    apps[0].state.server.authenticator._store._next_check = 0.0
    with TestClient(apps[0], base_url="http://127.0.0.1") as running:  # began before the key was
        assert running.get("/v1/models").status_code == 401
        assert "securitySchemes" in running.get("/openapi.json").json()["components"]
    assert main([*words, "--keys-file", str(tmp_path / "none")]) == 1
    assert f"there is no keys file {tmp_path / 'none'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tls-cert {file}", "--tls-cert and --tls-key must be given together"),
        ("--tls-cert /no/such --tls-key {file}", "cannot read /no/such: No such file or directory"),
        ("--tls-cert {file} --tls-key {file}", "are not a certificate and its private key in PEM"),
        ("--api-key-file /no/such", "cannot read /no/such: No such file or directory"),
        ("--api-key-file {binary}", "is not a text file in UTF-8"),
        ("--api-key-file /dev/null", "/dev/null has no API key"),
        ("--api-key=", "--api-key is empty; leave it out for a server that is open to all"),
        ("--keys-file /no/such", "`stonechat keys --keys-file /no/such add NAME` creates one"),
        ("--keys-file {file}", "/file is not valid TOML"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_the_model_loads(
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("stonechat_models.AsyncEngine.from_config", load)
    (tmp_path / "file").write_text("no key")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    words = flags.format(file=tmp_path / "file", binary=tmp_path / "binary").split()
    assert main(["serve", "--port", "0", "--ledger", "off", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stonechat serve: ")
    assert message in line
    assert "Errno" not in line
