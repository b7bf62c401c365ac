from pathlib import Path

import pytest

from stonechat_server.access.keys import KeysFileError, KeyStore, digest_of, parse_keys, read_keys
from stonechat_server.access.keys_file import add_key, revoke_key


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


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "other = 1",
        "keys = 1",
        "keys = [1]",
        '[[keys]]\nname = "a"',
        '[[keys]]\ndigest = "sha256:00"\nname = "a"',
        f'[[keys]]\nname = "a b"\ndigest = "{digest_of("x")}"',
        f'[[keys]]\nname = "a"\ndigest = "{digest_of("x")}"\nrequests_per_minute = 0',
        f'[[keys]]\nname = "a"\ndigest = "{digest_of("x")}"\ntokens_per_minute = true',
        f'[[keys]]\nname = "a"\ndigest = "{digest_of("x")}"\nmodels = [1]',
        f'[[keys]]\nname = "a"\ndigest = "{digest_of("x")}"\nrpm = 1',
        f'[[keys]]\nname = "a"\ndigest = "{digest_of("x")}"\n' * 2,
    ],
)
def test_invalid_files_are_refused(text: str) -> None:
    with pytest.raises(KeysFileError):
        parse_keys(text)


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
