"""What is said of a model that the hub does not return. No test asks the hub."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors

from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.hub import errors as hub_errors
from stonechat_models.checkpoint.hub.errors import not_found
from stonechat_models.checkpoint.known import aliases
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models.checkpoint.hub_cache import add_hub_model


class AskedError(Exception):
    """The library was called, which would retry for half a minute."""


@pytest.fixture
def no_network(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a network; the library is not in offline mode."""

    def head(url: str, timeout: float) -> None:
        assert url == constants.ENDPOINT
        assert timeout <= 5
        raise OSError("Name or service not known")

    def asks(*_: object, local_files_only: bool = False, **__: object) -> None:
        if not local_files_only:
            raise AskedError
        raise errors.LocalEntryNotFoundError("nothing in the cache")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
    for name in ("snapshot_download", "hf_hub_download", "get_safetensors_metadata"):
        monkeypatch.setattr(f"huggingface_hub.{name}", asks)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", asks)
    return caches


@pytest.mark.parametrize("model", ["nope", "a/b", "a/b:Q4_K_M", "a/b/c.gguf", "https://hf.co/a/b"])
def test_without_a_network_nothing_is_tried_again(no_network: Path, model: str) -> None:
    with pytest.raises(ModelLoadError, match="there is no network: the Hugging Face hub cannot"):
        resolve_model(EngineConfig(model=model), lambda line: None)
    with pytest.raises(ModelLoadError, match="there is no network: the Hugging Face hub cannot"):
        read_headers(EngineConfig(model=model), lambda line: None)


def test_without_a_network_the_cache_is_still_read(
    no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []

    def snapshot(*_: object, **options: object) -> str:
        given.append(options)
        return str(no_network)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert hub.fetch_snapshot("a/b", None, False, lambda line: None) == no_network
    assert all(options["local_files_only"] for options in given)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    given.clear()
    hub.fetch_snapshot("a/b", None, False, lambda line: None)
    assert not any(options["local_files_only"] for options in given)


def test_in_offline_mode_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", AskedError)
    assert constants.HF_HUB_OFFLINE
    assert hub_errors.is_reachable()
    message = str(not_found("a/b", errors.OfflineModeIsEnabled("x")))
    assert "the variable HF_HUB_OFFLINE is set" in message


def http_error(kind: type[Exception]) -> Exception:
    """An error of the library. Its classes are made of an answer of its HTTP library."""
    error = kind.__new__(kind)
    error.args = ("404 Client Error",)
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (http_error(errors.RepositoryNotFoundError), "has no such model, or not for you"),
        (http_error(errors.GatedRepoError), "consent: give it at https://huggingface.co/a/b, then"),
        (http_error(errors.RevisionNotFoundError), "has no such revision"),
        (http_error(errors.RemoteEntryNotFoundError), "has no such file"),
        (errors.NotASafetensorsRepoError("x"), "has no safetensors of it"),
        (errors.HFValidationError("x"), "it is no name of the Hugging Face hub"),
        (errors.LocalEntryNotFoundError("x"), "there is no network"),
        (ConnectionError(), "there is no network"),
        (FileNotFoundError("x"), "has no such file, or not for you"),
        (RuntimeError("strange\nthings"), "did not return it: RuntimeError: strange"),
    ],
)
def test_why_the_hub_returns_nothing(
    error: Exception, reason: str, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    message = str(not_found("a/b/c.gguf", error))
    assert message.startswith("a/b/c.gguf is not on this machine, and ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("SmolLM2-135M-Instuct", "SmolLM2-135M-Instruct"),
        ("smollm2-135m-instruct", "SmolLM2-135M-Instruct"),
        ("Qwen3-0.6", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("mien", "mine"),
        ("./lokal.gguf", "./local.gguf"),
        ("./foldr", "./folder"),
    ],
)
def test_a_misspelt_model_names_the_nearest(
    model: str, meant: str, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_hub_model(caches, "Qwen/Qwen3-0.6B", {"config.json": b"{}"})
    aliases.set_alias("mine", "Qwen/Qwen3-0.6B")
    (caches / "local.gguf").touch()
    (caches / "folder").mkdir()
    (caches / "folder" / "config.json").touch()
    monkeypatch.chdir(caches)
    for read in (resolve_model, read_headers):
        with pytest.raises(ModelLoadError) as failure:
            read(EngineConfig(model=model), lambda line: None)
        assert str(failure.value).endswith(f"; did you mean {meant}?")


def test_a_name_like_no_other_says_where_the_names_are(caches: Path) -> None:
    end = r"; `stonechat models` lists those that are here$"
    for model in ("zzzz", "zzzz.gguf", "/zzzz/yyyy"):
        with pytest.raises(ModelLoadError, match=end):
            resolve_model(EngineConfig(model=model), lambda line: None)
