"""What a config says of each module's weights, and what is refused before any is read."""

from typing import Any

import pytest

from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.packed.method import Method, read_method
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.packed_writers import compressed

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"


def method_of(quantization: dict[str, Any]) -> Method:
    raw = {"model_type": "llama", "quantization_config": quantization}
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 99}
    return read_method(parse_config({**raw, **sizes}, "config.json"))


def groups(*of_each: tuple[list[str], int]) -> dict[str, Any]:
    """The config of groups, of which each has targets and bits."""
    return {
        **compressed("pack-quantized"),
        "config_groups": {
            f"group_{i}": {"targets": targets, "weights": {"num_bits": bits}}
            for i, (targets, bits) in enumerate(of_each)
        },
    }


def test_a_module_without_a_name_of_its_own_is_in_the_group_of_its_class() -> None:
    method = method_of(groups((["re:.*mlp.*"], 4), (["Linear"], 8)))
    assert (method.bits_of(Q), method.bits_of(DOWN)) == (8, 4)


def test_a_path_goes_before_patterns_and_the_first_pattern_decides() -> None:
    method = method_of(groups((["re:.*"], 2), (["re:.*mlp.*"], 4), (["Linear", Q], 8)))
    assert (method.bits_of(Q), method.bits_of(DOWN)) == (8, 2)


def test_the_only_group_has_all_modules() -> None:
    assert method_of(groups((["re:(([a-z])+)+!"], 8))).bits_of(Q) == 8


def test_a_module_in_no_group_is_refused() -> None:
    method = method_of(groups((["re:.*mlp.*"], 4), (["re:.*experts.*"], 8)))
    with pytest.raises(UnsupportedModelError, match=f"without a quantisation of '{Q}'"):
        method.bits_of(Q)


@pytest.mark.parametrize("target", ["re:(", r"re:(a)\1", "re:[b-a]", "re:" + "a" * 5000])
def test_patterns_that_are_not_read_are_refused_by_name(target: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"compressed-tensors format with the target 're"
    ):
        method_of(groups((["Linear"], 4), ([target], 8)))


@pytest.mark.parametrize(
    ("bits", "kind", "shown"),
    [(0, "float", "0 bits of float"), (0, "int", "0 bits"), (8, "uint", "8 bits of uint")],
)
def test_bits_are_checked_for_each_type(bits: int, kind: str, shown: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"format with {shown}, which is not read"):
        method_of(compressed("float-quantized", num_bits=bits, type=kind))


def test_blocks_may_be_a_text() -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "block"}
    for block in ("128x64", [128, 64]):
        method = method_of(compressed("float-quantized", **weights, block_structure=block))
        assert method.block_of(Q) == (128, 64)
    with pytest.raises(ModelLoadError, match="block_structure is '128', which is not a size"):
        method_of(compressed("float-quantized", **weights, block_structure="128"))
