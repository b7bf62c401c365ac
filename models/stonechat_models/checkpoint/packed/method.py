"""Which quantisation a model's config names, and whether its weights can be read."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from stonechat_models.checkpoint.hf_config import HFConfig, JsonObject, shown
from stonechat_models.checkpoint.patterns import PatternError, compiled
from stonechat_models.errors import UnsupportedModelError

LABELS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "mxfp8": "MXFP8",
    "modelopt": "ModelOpt",
    "mlx": "MLX",
    "bitsandbytes": "bitsandbytes",
}
"""The methods whose weights are read here."""
PACKAGES = {
    "mxfp4": "",
    "bitnet": "",
    "gemma": "",
    "aqlm": "aqlm",
    "eetq": "kernels",
    "fouroversix": "fouroversix",
    "fp_quant": "fp_quant",
    "higgs": "flute",
    "hqq": "hqq",
    "metal": "kernels",
    "nvfp4": "kernels",
    "quanto": "optimum",
    "quark": "quark",
    "sinq": "sinq",
    "spqr": "spqr_quant",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""The methods that transformers reads, and the package that each needs."""
AUTO_ROUND = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}
COMPRESSED_FORMATS = frozenset(
    {
        *("dense", "float-quantized", "int-quantized", "mixed-precision", "mxfp4-pack-quantized"),
        *("mxfp8-quantized", "naive-quantized", "nvfp4-pack-quantized", "pack-quantized"),
    }
)
MLX_TYPES = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "smollm3", "granite", "olmo2"),
        *("gemma", "gemma2", "gemma3_text", "gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl"),
        *("qwen3_vl", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "lfm2"),
    }
)
"""The model types whose MLX files are read. MLX may change numbers when it converts others, in ways
that are not known here."""
COMPRESSED_BITS = {"int": (2, 4, 8), "float": (4, 8)}
MODELOPT_ALGORITHMS = frozenset(
    ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MIXED_PRECISION", "NVFP4", "W4A16_NVFP4")
)


@dataclass(frozen=True, slots=True)
class Method:
    """A method and its `quantization_config`. An empty name: the config does not say."""

    name: str
    keys: JsonObject

    @property
    def label(self) -> str:
        """The name as error messages show it."""
        return LABELS.get(self.name, self.name)

    @property
    def stored_form(self) -> str:
        """The variant of GPTQ's layout: gptq or gptq_v2, or one that is not read."""
        if self.keys.read("is_marlin_format", bool, False):
            return "marlin"
        return self.keys.read("checkpoint_format", str, self.keys.read("format", str, "gptq"))

    @property
    def is_read_here(self) -> bool:
        """Whether its tensors are read by this package, not by transformers."""
        return self.name in LABELS or not self.name

    @property
    def is_kept_by_package(self) -> bool:
        """Whether the weights stay quantised, in tensors of a package."""
        return not self.is_read_here and bool(PACKAGES[self.name])

    def bits_of(self, module: str) -> int:
        """Return the bits of the module's weights, as its group in the config says."""
        if self.name == "compressed-tensors":
            return self._weights_of(module).read("num_bits", int, 4)
        keys = self._keys_of(module)
        return keys.read("bits", int, keys.read("w_bit", int, 4))

    def group_size_of(self, module: str) -> int:
        """Return how many consecutive weights share a scale. Not above 0: all of a row."""
        if self.name == "compressed-tensors":
            return self._weights_of(module).read("group_size", int, -1)
        keys = self._keys_of(module)
        return keys.read("group_size", int, keys.read("q_group_size", int, 128))

    def block_of(self, module: str) -> tuple[int, int]:
        """Return the rows and columns of a block of weights that share a scale.

        Not above 0: all of them, or as many as the number of scales says.
        """
        section, key = self.keys, "weight_block_size"
        if self.name == "compressed-tensors":
            section, key = self._weights_of(module), "block_structure"
        block = _read_block(section, key)
        if block is not None:
            return block
        return (128, 128) if self.name == "fp8" else (0, self.group_size_of(module))

    def _keys_of(self, module: str) -> JsonObject:
        """Return how a module is quantised. MLX has entries for those that differ."""
        has_own = self.name == "mlx" and module in self.keys.values
        return self.keys.section(module) if has_own else self.keys

    def _weights_of(self, module: str) -> JsonObject:
        """Return how compressed-tensors quantises the weights of a module.

        Its path goes before patterns, of which the first decides, and these before its class.
        """
        groups = self.keys.section("config_groups").sections().values()
        if len(groups) < 2:
            return next(iter(groups), self.keys).section("weights")
        targets = [(t, group) for group in groups for t in group.read("targets", list[str], [])]
        ways: tuple[Callable[[str], bool], ...] = (
            lambda target: module == target or module.endswith("." + target),
            lambda target: _is_pattern_of(self, target, module),
            lambda target: target == "Linear",  # the class of all layers that are packed
        )
        for names_module in ways:
            for target, group in targets:
                if names_module(target):
                    return group.section("weights")
        raise _refuse(self, f"without a quantisation of {shown(module)}")


def _is_pattern_of(method: Method, target: str, module: str) -> bool:
    """Whether the target is a pattern that the path matches. Refuses patterns that are not read."""
    if not target.startswith("re:"):
        return False
    try:
        return compiled(target[3:])(module)
    except PatternError as error:
        raise _refuse(method, f"with the target {shown(target)}") from error


def _read_block(section: JsonObject, key: str) -> tuple[int, int] | None:
    """Return the rows and columns of a block, a list or a text as 128x128. None: there is none."""
    value = section.values.get(key)
    if isinstance(value, str):
        sizes = re.fullmatch(r"(\d{1,9})x(\d{1,9})", value.strip())
        if sizes is None:
            raise section.error(key, f"is {shown(value)}, which is not a size such as 128x128")
        return int(sizes[1]), int(sizes[2])
    block = section.read(key, list[int], [])
    return (block[0], block[1]) if len(block) == 2 else None


def read_method(config: HFConfig) -> Method:
    """Return the quantisation that a config names.

    Raises `UnsupportedModelError` with the format's name if its weights cannot be read.
    """
    keys = config.keys.section("quantization_config")
    keys = keys if keys.values else config.keys.section("quantization")
    method = Method(_method_name(keys), keys)
    _refuse_unknown(method)
    _refuse_variants(method)
    if method.name == "mlx" and config.model_type not in MLX_TYPES:
        raise _refuse(method, f"of the type {config.model_type}")
    return method


def _method_name(keys: JsonObject) -> str:
    name = keys.read("quant_method", str, "").lower().replace("_tensors", "-tensors")
    if name.startswith("modelopt") or (not name and "quant_algo" in keys.values):
        return "modelopt"
    if name.startswith("bitsandbytes") or (not name and "load_in_4bit" in keys.values):
        return "bitsandbytes"
    if not name and {"bits", "group_size"} <= keys.values.keys():
        return "mlx"
    if name == "auto-round":
        return AUTO_ROUND.get(keys.read("packing_format", str, "auto_round:auto_gptq"), name)
    return name


def _refuse(method: Method, variant: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"its weights are in the {method.label} format {variant}, which is not read; choose "
        "another version of the model"
    )


def _refuse_unknown(method: Method) -> None:
    if method.is_read_here:
        return
    if method.name not in PACKAGES:
        raise UnsupportedModelError(
            f"its weights are in the format {method.name}, which is not read; choose another "
            "version of the model"
        )
    package = PACKAGES[method.name]
    if package and find_spec(package) is None:
        raise UnsupportedModelError(
            f"its weights are in the format {method.name}, which needs the package {package}; "
            "install it, or choose another version of the model"
        )


def _refuse_variants(method: Method) -> None:
    """Raise for what a method's name covers and its reader does not."""
    keys = method.keys
    if method.name == "gptq":
        if method.stored_form not in ("gptq", "gptq_v2"):
            raise _refuse(method, method.stored_form)
        if method.bits_of("") not in (2, 3, 4, 8):
            raise _refuse(method, f"with {method.bits_of('')} bits")
    if method.name == "awq":
        version = keys.read("version", str, keys.read("format", str, "gemm")).lower()
        if version != "gemm":
            raise _refuse(method, version)
        if method.bits_of("") != 4:
            raise _refuse(method, f"with {method.bits_of('')} bits")
    if method.name == "mlx":
        for part in (keys, *keys.sections().values()):
            mode = part.read("mode", str, "affine")
            if mode != "affine":
                raise _refuse(method, f"of the mode {mode}")
    if method.name == "modelopt":
        algorithm = keys.read("quant_algo", str, "")
        if algorithm and algorithm not in MODELOPT_ALGORITHMS:
            raise _refuse(method, algorithm)
    if method.name == "compressed-tensors":
        _refuse_compressed(method)


def _refuse_compressed(method: Method) -> None:
    keys = method.keys
    groups = keys.section("config_groups").sections()
    formats = [keys.read("format", str, "dense")]
    formats += [group.read("format", str, "dense") for group in groups.values()]
    formats.append(keys.section("sparsity_config").read("format", str, "dense"))
    for name in formats:
        if name not in COMPRESSED_FORMATS:
            raise _refuse(method, name)
    if keys.section("transform_config").read("config_groups", dict[str, object], {}):
        raise _refuse(method, "with transforms")
    for group in groups.values():
        weights = group.section("weights")
        bits, kind = weights.read("num_bits", int, 4), weights.read("type", str, "int")
        if bits not in COMPRESSED_BITS.get(kind, ()):
            raise _refuse(method, f"with {bits} bits" + ("" if kind == "int" else f" of {kind}"))
        _read_block(weights, "block_structure")
        targets = group.read("targets", list[str], []) if len(groups) > 1 else []
        for target in targets:
            _is_pattern_of(method, target, "")
