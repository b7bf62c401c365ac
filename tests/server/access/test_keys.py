import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stonechat_server.access import keys_file
from stonechat_server.access.keys import (
    MAX_FILE,
    KeysFileError,
    KeyStore,
    digest_of,
    parse_keys,
    read_keys,
)
from stonechat_server.access.keys_file import add_key, open_key_store, revoke_key


def test_add_find_revoke(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    secret = add_key(path, "alice", models=("m",), requests_per_minute=5, priority=-1)
    other = add_key(path, "bob", tokens_per_minute=100, max_concurrency=2)
    text = path.read_text()
    assert secret not in text
    assert other not in text
    now = [0.0]
    store = KeyStore(path, lambda: now[0])
    alice = store.find(secret)
    assert alice is not None
    assert (alice.name, alice.requests_per_minute, alice.priority) == ("alice", 5, -1)
    assert alice.may_use("m")
    assert not alice.may_use("other")
    assert store.find("sk-wrong") is None
    assert store.find("") is None
    revoke_key(path, "alice")
    now[0] = 2.0
    assert store.find(secret) is None
    assert store.find(other) is not None
    with pytest.raises(KeysFileError, match="no live key"):
        revoke_key(path, "alice")
    assert add_key(path, "alice") != secret
    assert [key.revoked for key in read_keys(path)] == [True, False, False]


def test_a_broken_edit_keeps_the_last_good_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    secret = add_key(path, "alice")
    good = path.read_text()
    now = [0.0]
    store = KeyStore(path, lambda: now[0])
    path.write_text("[[keys]\n")
    for now[0] in (2.0, 4.0, 6.0):
        assert store.find(secret) is not None
    assert len(caplog.records) == 1
    path.unlink()
    now[0] = 8.0
    assert store.find(secret) is not None
    path.write_text(good.replace('name = "alice"', 'name = "al"'))
    now[0] = 10.0
    renamed_key = store.find(secret)
    assert renamed_key is not None
    assert renamed_key.name == "al"


@pytest.mark.parametrize("text", ["", "\n", "# being written\n", "[[keys]]\nname = "])
def test_a_file_that_is_being_written_keeps_the_last_good_keys(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    secret = add_key(path, "alice")
    good = path.read_text()
    now = [0.0]
    store = KeyStore(path, lambda: now[0])
    path.write_text(text)
    for now[0] in (2.0, 4.0):
        assert store.find(secret) is not None
    (record,) = caplog.records
    assert record.getMessage().startswith("the last good keys stay in force: ")
    path.write_text(good.replace("alice", "bob"))
    now[0] = 6.0
    key = store.find(secret)
    assert key is not None
    assert key.name == "bob"


def test_a_file_can_say_that_there_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    secret = add_key(path, "alice")
    now = [0.0]
    store = KeyStore(path, lambda: now[0])
    path.write_text("keys = []\n")
    now[0] = 2.0
    assert store.find(secret) is None
    assert len(store) == 0


def test_a_server_may_start_with_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.touch()
    now = [0.0]
    store = KeyStore(path, lambda: now[0])
    assert store.find("sk-any") is None
    secret = add_key(path, "alice")
    now[0] = 2.0
    assert store.find(secret) is not None


def test_edits_keep_comments_and_permissions(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("# ours\n")
    path.chmod(0o640)
    add_key(path, "alice")
    assert path.read_text().startswith("# ours\n")
    assert path.stat().st_mode & 0o777 == 0o640
    fresh = tmp_path / "sub" / "keys.toml"
    add_key(fresh, "alice")
    assert fresh.stat().st_mode & 0o777 == 0o600


GOOD = f'[[keys]]\nname = "a"\ndigest = "{digest_of("x")}"\n'
ONLY_KEYS = "the keys file may only hold [[keys]] tables"
NAME = "name must be 1 to 64 letters, digits and ._@-, beginning with a letter or digit"
DIGEST = "digest must be sha256: and 64 hexadecimal digits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "the keys file is not valid TOML: "),
        ("other = 1", ONLY_KEYS),
        ("keys = 1", ONLY_KEYS),
        ("keys = {}", ONLY_KEYS),
        (f"version = 2\n{GOOD}", ONLY_KEYS),
        ("keys = [1]", "key 1 of the keys file is not a table"),
        ('[[keys]]\nname = "a"', "key 1 of the keys file: missing required field digest"),
        (GOOD.replace("name", "created"), "key 1 of the keys file: missing required field name"),
        (GOOD.replace('"a"', '"a b"'), NAME),
        (GOOD.replace('"a"', '"a\\n"'), NAME),
        (GOOD.replace('"a"', f'"{"a" * 65}"'), NAME),
        (GOOD.replace('"a"', "5"), NAME),
        (GOOD.replace("sha256:", "sha256:0"), DIGEST),
        (GOOD.replace("sha256:", "md5:"), DIGEST),
        (f"{GOOD}requests_per_minute = 0", "must be a whole number of at least 1"),
        (f"{GOOD}tokens_per_minute = true", "must be a whole number of at least 1"),
        (f"{GOOD}max_concurrency = 1.0", "max_concurrency must be a whole number of at least 1"),
        (f'{GOOD}models = ["m", 1]', "key 1 of the keys file: models must be a list of strings"),
        (f'{GOOD}models = "m"', "models must be a list of strings"),
        (f'{GOOD}priority = "1"', "priority must be a whole number"),
        (f"{GOOD}created = 2026-01-01", "created must be a string"),
        (f"{GOOD}revoked = 1", "revoked must be true or false"),
        (f"{GOOD}rpm = 1", "key 1 of the keys file: contains unknown field rpm"),
        (GOOD + GOOD.replace('"a"', '"b"') + "priority = 1.5", "key 2 of the keys file: priority"),
        (GOOD * 2, "two keys of the keys file have the same name"),
        (GOOD + GOOD.replace('"a"', '"b"'), "two keys of the keys file have the same digest"),
    ],
)
def test_invalid_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(KeysFileError, match=re.escape(message)):
        parse_keys(text)


def test_a_revoked_key_may_have_the_name_of_a_live_one() -> None:
    keys = parse_keys(f"{GOOD}revoked = true\n{GOOD}")
    assert [(key.name, key.revoked) for key in keys] == [("a", True), ("a", False)]
    assert parse_keys("") == parse_keys("keys = []") == ()


def test_any_string_has_a_digest() -> None:
    expected = "sha256:" + hashlib.sha256("kläy".encode()).hexdigest()
    assert digest_of("kläy") == expected
    assert len(digest_of("\udcff")) == len(digest_of("\ud800")) == len(expected)


def test_duplicate_and_invalid_names_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    add_key(path, "alice")
    before = path.read_text()
    for name in ("alice", "not valid", ""):
        with pytest.raises(KeysFileError):
            add_key(path, name)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(KeysFileError):
        KeyStore(tmp_path / "none.toml")


def test_a_file_that_may_be_absent_closes_the_server_for_good(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "keys.toml"
    now = [0.0]
    store = KeyStore(path, lambda: now[0], may_be_absent=True)
    now[0] = 2.0
    assert not store.asks
    secret = add_key(path, "alice")
    assert not store.asks  # it looks once a second
    now[0] = 3.0
    assert store.asks
    assert store.find(secret) is not None
    path.unlink()
    now[0] = 5.0
    assert store.asks
    assert store.find(secret) is not None
    add_key(path, "bob")
    now[0] = 7.0
    assert store.find(secret) is None
    path.write_text("keys = []")
    now[0] = 9.0
    assert store.asks


def _put(kind: str, path: Path) -> None:
    match kind:
        case "a dangling link":
            path.symlink_to("gone")
        case "a folder":
            path.mkdir()
        case "no TOML":
            path.write_text("[[keys]\n")
        case "a pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a large file":
            path.touch()
            os.truncate(path, MAX_FILE + 1)
        case "empty":
            path.touch()


@pytest.mark.parametrize("kind", ["a dangling link", "a folder", "no TOML", "empty"])
def test_a_file_that_appears_broken_closes_the_server_too(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    now = [0.0]
    store = KeyStore(path, lambda: now[0], may_be_absent=True)
    _put(kind, path)
    for now[0] in (2.0, 4.0):
        assert store.asks
        assert store.find("sk-any") is None
    texts = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(texts) == (0 if kind == "empty" else 1)
    for text in texts:
        assert text.startswith("no key of the file is accepted: ")
        assert str(path) in text


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a dangling link", "the keys file {path} is a link to gone, which is not there"),
        ("a folder", "cannot read the keys file {path}: Is a directory"),
        ("a pipe", "cannot read the keys file {path}: it is not a regular file"),
        ("a device", "cannot read the keys file {path}: it is not a regular file"),
        ("a large file", "cannot read the keys file {path}: it is too large"),
        ("no TOML", "the keys file {path} is not valid TOML: "),
        ("an unreadable folder", "cannot read the keys file {path}: Permission denied"),
    ],
)
def test_a_default_file_that_cannot_be_read_is_an_error_at_start(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "stonechat" / "keys.toml"
    path.parent.mkdir()
    _put(kind, path)
    if kind == "an unreadable folder":  # root can read every folder

        def refuse(file: object, *_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr("stonechat_server.access.keys.os.lstat", refuse)
        monkeypatch.setattr(Path, "stat", refuse)
        monkeypatch.setattr("stonechat_server.access.keys._read_file", refuse)
    with pytest.raises(KeysFileError) as caught:
        open_key_store(None)
    assert str(caught.value).startswith(message.format(path=path))
    assert "--keys-file off" in str(caught.value)


def test_the_advice_for_a_missing_file_works(tmp_path: Path) -> None:
    path = tmp_path / "my keys.toml"
    with pytest.raises(KeysFileError) as caught:
        read_keys(path)
    assert f"`stonechat keys --keys-file '{path}' add NAME` creates one" in str(caught.value)


def test_edits_at_the_same_time_lose_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sub" / "keys.toml"
    read = keys_file._read_document

    def read_slowly(file: Path) -> object:
        document = read(file)
        os.sched_yield()
        return document

    monkeypatch.setattr(keys_file, "_read_document", read_slowly)
    names = [f"key{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_key(path, name), names))
        list(pool.map(lambda name: revoke_key(path, name), names[::2]))
    keys = read_keys(path)
    assert {key.name: key.revoked for key in keys} == {
        name: number % 2 == 0 for number, name in enumerate(names)
    }
    assert list(path.parent.iterdir()) == [path]


def test_an_edit_follows_a_link(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.symlink_to("real.toml")
    secret = add_key(path, "alice")
    assert path.is_symlink()
    assert KeyStore(tmp_path / "real.toml").find(secret) is not None
