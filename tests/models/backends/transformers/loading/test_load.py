"""A model is loaded with its device as the current one."""

from contextlib import contextmanager

import pytest
import torch

from stonechat_models.backends.transformers.loading import load
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models.tiny_models import save_tiny_model
from tests.models.tiny_tokenizers import save_byte_level


def test_kernels_are_launched_on_the_device_of_the_model(tmp_path, monkeypatch):
    """Triton launches on the current device of the thread, which is the first by default."""
    current, seen = [], []

    @contextmanager
    def enter(device):
        current.append(device)
        yield
        current.pop()

    def load_module(*_args, **_settings):
        seen.extend(current)
        raise ModelLoadError("this is a test")

    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device", enter)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(load, "load_module", load_module)
    folder = save_tiny_model(tmp_path / "model", "llama", save_byte_level(tmp_path / "tokenizer"))
    config = EngineConfig(model=str(folder), attention_backend="sdpa")
    with pytest.raises(ModelLoadError, match="this is a test"):
        load.load_transformers_model(
            resolve_model(config, lambda _: None), config, second, lambda _: None
        )
    assert seen == [second]
