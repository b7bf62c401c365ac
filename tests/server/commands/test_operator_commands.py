import csv
import io
import json
from pathlib import Path

import pytest

from stonechat_server.access.keys import KeysFileError, KeyStore
from stonechat_server.access.keys_file import open_key_store
from stonechat_server.cli import main
from stonechat_server.observability.ledger import Ledger, LedgerEntry
from stonechat_server.observability.ledger.location import ledger_place


def test_keys_add_list_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    base = ["keys", "--keys-file", str(path)]
    limits = ["--requests-per-minute", "60", "--models", "a,b", "--priority", "-1"]
    assert main([*base, "add", "alice", *limits]) == 0
    secret = capsys.readouterr().out.strip()
    key = KeyStore(path).find(secret)
    assert key is not None
    assert (key.name, key.models, key.priority) == ("alice", ("a", "b"), -1)
    assert main([*base, "list"]) == 0
    listing = capsys.readouterr().out
    assert listing.splitlines()[1].split() == ["alice", "live", "60", "-", "-", "-1", "a,b", "-"]
    assert secret not in listing
    assert not key.manages_models
    assert main([*base, "add", "admin", "--manages-models"]) == 0
    admin = KeyStore(path).find(capsys.readouterr().out.strip())
    assert admin is not None
    assert admin.manages_models
    assert main([*base, "revoke", "alice"]) == 0
    assert main([*base, "revoke", "alice"]) == 1
    assert KeyStore(path).find(secret) is None


def test_keys_have_a_default_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "stonechat" / "keys.toml"
    store = open_key_store(None)
    assert store is not None
    assert not store.asks
    assert main(["keys"]) == 0
    assert f"no keys in {path} yet; `stonechat keys add NAME`" in capsys.readouterr().out
    assert main(["keys", "add", "alice"]) == 0
    output = capsys.readouterr()
    assert f"Added alice to {path}" in output.err
    assert "`stonechat serve` asks for it, also where it runs already." in output.err
    assert "--keys-file" not in output.err
    store = open_key_store(None)
    assert store is not None
    assert store.asks
    assert KeyStore(path).find(output.out.strip()) is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["keys"]) == 0
    assert "alice" in capsys.readouterr().out
    assert open_key_store(Path("off")) is None
    with pytest.raises(KeysFileError, match=f"there is no keys file {tmp_path / 'other'}"):
        open_key_store(tmp_path / "other")
    assert main(["keys", "--keys-file", "off"]) == 1
    assert "the keys file is off" in capsys.readouterr().err


def test_mistakes_with_keys_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.toml"
    words = ["keys", "--keys-file", str(file)]
    assert main([*words, "list"]) == 1
    assert (
        f"there is no keys file {file}; `stonechat keys --keys-file {file} add"
        in capsys.readouterr().err
    )
    assert main([*words, "add", "alice"]) == 0
    assert f"`stonechat serve --keys-file {file}` asks for it" in capsys.readouterr().err
    assert main([*words, "add", "alice"]) == 1
    assert "has a live key named alice; choose another name" in capsys.readouterr().err
    assert main([*words, "revoke", "alcie"]) == 1
    assert "no live key named alcie" in (error := capsys.readouterr().err)
    assert "did you mean alice?" in error
    (tmp_path / "plain").touch()
    assert main(["keys", "--keys-file", str(tmp_path / "plain" / "k"), "add", "bob"]) == 1
    error = capsys.readouterr().err
    assert "Errno" not in error
    assert error.startswith("stonechat keys: ")


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    ledger = Ledger(url, tmp_path / "journal", flush_seconds=60)
    for number, day in enumerate((1, 1, 2)):
        ledger.record(
            LedgerEntry(
                id=str(number),
                created=day * 86_400.0 + 5,
                request_id="r",
                key="alice",
                model="m",
                endpoint="/v1/messages",
                user="u",
                prompt_tokens=10,
                completion_tokens=number,
            )
        )
    ledger.close()
    base = ["usage", "--ledger", url]
    assert main(base) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["alice", "u", "1970-01-02", "2", "0", "20", "0", "1"]
    assert lines[2] == ["alice", "u", "1970-01-03", "1", "0", "10", "0", "2"]
    assert main([*base, "--by", "day", "--until", "1970-01-02", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["day"], row["requests"]) == ("1970-01-02", 2)
    assert main([*base, "--by", "model", "--since", "1970-01-03", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["model"], row["completion_tokens"]) for row in table] == [("m", "2")]
    assert main([*base, "--by", "endpoint", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["endpoint"], row["requests"]) == ("/v1/messages", 3)
    assert main([*base, "--delete-before", "1970-01-03"]) == 0
    assert "Deleted 2" in capsys.readouterr().err
    assert main(["usage", "--ledger", str(tmp_path / "usage.db"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["requests"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--by colour", "--by accepts key, user, model, endpoint, day, not colour"),
        ("--by modle", "not modle; did you mean model?"),
        ("--ledger off", "the ledger is off; choose one with --ledger"),
        ("--ledger mysql://nowhere", "driver of its database is not installed (No module"),
        (f"--ledger {__file__}", "is no usage ledger: it is not a SQLite file"),
        ("--since 2026-02-01 --until 2026-01-01", "--since 2026-02-01 is after --until"),
        ("--ledger nothing://nowhere", "neither a path nor the URL of a database"),
        ("--ledger sqlite:////dev/null/x.db", "/dev/null is a file, not a folder"),
    ],
)
def test_a_ledger_that_cannot_be_read(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["usage", *words.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stonechat usage: ")
    assert message in line


def test_a_ledger_that_is_not_there_is_not_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "usage.db"
    assert main(["usage", "--ledger", str(path)]) == 1
    assert f"there is no ledger {path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_where_the_ledger_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger_place("off") is None
    place = ledger_place("postgresql://u@h/d", tmp_path)
    assert place is not None
    assert (place.url, place.journal) == ("postgresql+psycopg://u@h/d", tmp_path)
    default = ledger_place("auto")
    assert default is not None
    assert default.url.startswith("sqlite:///")
    monkeypatch.chdir(tmp_path)
    named = ledger_place("mine.db")
    assert named is not None
    assert named.url == f"sqlite:///{tmp_path / 'mine.db'}"
    assert named.file == tmp_path / "mine.db"
    assert named.journal == tmp_path / "mine-entries"
