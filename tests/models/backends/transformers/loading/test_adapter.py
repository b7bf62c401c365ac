"""LoRA adapters merged into loaded modules, compared with weights that numpy has changed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stonechat_models.backends.transformers.loading.adapter import (
    merge_adapter,
    refuse_unasked_adapter,
)
from stonechat_models.checkpoint.adapter.files import read_adapter
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.every_family import tiny_model as tiny_model_of_type
from tests.models.tiny_adapters import projections, write_adapter
from tests.models.tiny_models import tiny_model


def test_weights_that_are_stored_transposed(tmp_path: Path) -> None:
    """GPT-2 has linear layers whose weights are [in, out]; some of them are square."""
    module = tiny_model_of_type("gpt2")
    names = ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"]
    before = {name: module.get_submodule(name).weight.detach().clone().numpy() for name in names}
    assert before[names[1]].shape[0] == before[names[1]].shape[1]
    products = write_adapter(tmp_path, module, names, fan_in_fan_out=True)
    merge_adapter(module, read_adapter(tmp_path, "mine"), "tiny")
    for name, product in products.items():
        expected = before[name] + 6 / 4 * product.T
        np.testing.assert_allclose(
            module.get_submodule(name).weight.detach().numpy(), expected, atol=1e-5
        )


def test_no_adapter_is_loaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "stonechat_models.backends.transformers.loading.adapter.find_spec"
    write_adapter(tmp_path / "model", tiny_model("llama"), projections(1))
    monkeypatch.setattr(place, lambda name: None)
    refuse_unasked_adapter(tmp_path / "model")
    monkeypatch.setattr(place, lambda name: name)
    refuse_unasked_adapter(tmp_path)
    with pytest.raises(ModelLoadError, match="move the adapter"):
        refuse_unasked_adapter(tmp_path / "model")


def test_other_weights_stay(tmp_path: Path) -> None:
    module = tiny_model("llama").bfloat16()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    names = projections(1)
    write_adapter(tmp_path, module, names)
    merge_adapter(module, read_adapter(tmp_path, "mine"), "tiny")
    changed = {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {f"{name}.weight" for name in names}
    assert {value.dtype for value in module.state_dict().values()} == {torch.bfloat16}


def test_shared_quantised_and_missing_weights_are_refused(tmp_path: Path) -> None:
    module = tiny_model("llama", tie_word_embeddings=True)
    write_adapter(tmp_path, module, ["lm_head"])
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight, which is also another part"):
        merge_adapter(module, read_adapter(tmp_path, "mine"), "tiny")
    write_adapter(tmp_path, module, projections(1))
    adapter = read_adapter(tmp_path, "mine")
    layer = module.model.layers[0].self_attn.q_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="quantised weights"):
        merge_adapter(module, adapter, "tiny")
    with pytest.raises(UnsupportedModelError, match="left on disk"):
        merge_adapter(tiny_model("llama").to("meta"), adapter, "tiny")
    with pytest.raises(ModelLoadError, match="of their own, which the adapter mine changes"):
        merge_adapter(tiny_model("mixtral"), adapter, "tiny")
