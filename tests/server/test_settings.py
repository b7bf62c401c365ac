"""Settings: their sources, the order of the sources, and their way to the engine."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import ValidationError

from stonechat_models import EngineConfig
from stonechat_server.settings import Settings, load_settings


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "stonechat.toml"
    path.write_text('port = 1\nhost = "file"\nmax_num_seqs = 3\napi_key = ["a", "b"]\n')
    return path


def test_flag_beats_environment_beats_file(
    monkeypatch: pytest.MonkeyPatch, config_file: Path
) -> None:
    monkeypatch.setenv("STONECHAT_PORT", "2")
    monkeypatch.setenv("STONECHAT_HOST", "environment")
    settings = load_settings({"port": "3"}, config_file)
    assert (settings.port, settings.host, settings.max_num_seqs) == (3, "environment", 3)
    assert settings.all_api_keys() == ["a", "b"]


def test_lists_in_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STONECHAT_API_KEY", "a, b,")
    monkeypatch.setenv("STONECHAT_SERVED_MODEL_NAME", "one,two")
    settings = load_settings({})
    assert settings.all_api_keys() == ["a", "b"]
    assert settings.served_model_name == ["one", "two"]


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\none\n  two  \n")
    settings = load_settings({"api_key": ["zero"], "api_key_file": str(path)})
    assert settings.all_api_keys() == ["zero", "one", "two"]


def test_keys_are_not_shown() -> None:
    assert "hush" not in repr(load_settings({"api_key": ["hush"]}))


def test_sizes_have_units() -> None:
    assert load_settings({"kv_cache_size": "2GiB"}).kv_cache_size == 2 * 2**30


@pytest.mark.parametrize(
    "values",
    [{"port": 70000}, {"dtype": "float8"}, {"kv_cache_fraction": 0}, {"unknown": 1}],
)
def test_bad_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_settings(values)


def test_unknown_keys_of_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stonechat.toml"
    path.write_text("prot = 1\n")
    with pytest.raises(ValidationError, match="prot"):
        load_settings({}, path)


def test_every_field_of_the_engine_config_comes_from_a_setting() -> None:
    """Each comes from the setting of its name; bytes come from a size."""
    names = {f.name for f in fields(EngineConfig)}
    values: dict[str, Any] = {
        "model": "m",
        "revision": "r",
        "adapter": "a",
        "mmproj": "v",
        "lora": ("name=a",),
        "device": "cuda:1",
        "dtype": "float16",
        "quantize": "int8",
        "backend": "transformers",
        "attention_backend": "sdpa",
        "device_map": "auto",
        "max_model_len": 100,
        "kv_cache_size": 1000,
        "kv_cache_fraction": 0.5,
        "kv_cache_dtype": "fp8",
        "overlap": False,
        "generation_config": "none",
        "prompt_lookup": True,
        "draft_model": "d",
        "num_draft_tokens": 5,
        "embeddings": True,
        "block_size": 32,
        "image_cache_size": 1000,
        "max_batch_tokens": 64,
        "max_num_seqs": 4,
        "prefix_caching": False,
        "deterministic": True,
        "threads": 3,
        "trust_remote_code": True,
        "allow_pickle": True,
        "eager": True,
        "engine_process": True,
        "tensor_parallel": 2,
    }
    config = Settings(**values).engine_config()
    for name, setting in (("kv_cache", "kv_cache"), ("media_cache", "image_cache")):
        values[f"{name}_bytes"] = values.pop(f"{setting}_size")
    assert {name: getattr(config, name) for name in names & set(values)} == values
    assert names - set(values) == set(), "fields that come from no setting"


@pytest.mark.parametrize("name", ["quantize", "backend", "kv_cache_dtype"])
def test_a_setting_has_the_values_that_the_engine_knows(name: str) -> None:
    values = get_args(Settings.model_fields[name].annotation)
    assert set(values) == _literals(get_type_hints(EngineConfig)[name])


def _literals(kind: Any) -> set[object]:
    parts = get_args(kind)
    return set().union(*(_literals(part) if get_args(part) else {part} for part in parts))
