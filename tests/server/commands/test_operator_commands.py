import csv
import io
import json
from pathlib import Path

import pytest

from stonechat_server.access.keys import KeyStore
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
    assert main([*base, "add", "alice"]) == 1
    assert "same name" in capsys.readouterr().err
    assert main([*base, "list"]) == 0
    listing = capsys.readouterr().out
    assert listing.splitlines()[1].split() == ["alice", "live", "60", "-", "-", "-1", "a,b"]
    assert secret not in listing
    assert main([*base, "revoke", "alice"]) == 0
    assert main([*base, "revoke", "alice"]) == 1
    assert KeyStore(path).find(secret) is None


def test_keys_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list"]) == 1
    assert "--keys-file" in capsys.readouterr().err


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
    assert main([*base, "--delete-before", "1970-01-03"]) == 0
    assert "Deleted 2" in capsys.readouterr().err
    assert main([*base, "--by", "colour"]) == 1
    assert main(["usage", "--ledger", "off"]) == 1
    assert main(["usage", "--ledger", "mysql://nowhere"]) == 1


def test_where_the_ledger_is(tmp_path: Path) -> None:
    assert ledger_place("off") is None
    place = ledger_place("postgresql://u@h/d", tmp_path)
    assert place is not None
    assert (place.url, place.journal) == ("postgresql+psycopg://u@h/d", tmp_path)
    default = ledger_place("auto")
    assert default is not None
    assert default.url.startswith("sqlite:///")
