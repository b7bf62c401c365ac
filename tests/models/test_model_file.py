"""Any damage to a model's files is a refusal in a sentence, or the model still answers."""

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint import cache
from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import survey_model
from stonechat_models.errors import EngineError, ModelLoadError
from stonechat_models.model_file import read_json, reading
from stonechat_models.runtime.build import build_engine
from tests.models import tiny_gguf
from tests.models.compiled_cache import use_model_cache
from tests.models.file_mutations import pack_gguf, unpack_gguf
from tests.models.tiny_models import tiny_model
from tests.models.tiny_tokenizers import byte_level_backend

ROOT = Path(__file__).parents[2]
NATIVE_SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "vocab_size": 300}
FOLDERS = {
    "llama": {},
    "qwen3_moe": {"moe_intermediate_size": 32},
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
}
GGUF_FILES = ("llama", "qwen3", "qwen3moe", "phi3")


def make_models(folder: Path) -> None:
    """Write the undamaged models: GGUF files and folders, all for the native backend."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "EXPERT_FFN", 64)
        for architecture in GGUF_FILES:
            patch.setitem(tiny_gguf.HEAD_DIMS, architecture, 32)
            tiny_gguf.write_tiny_gguf(folder / f"{architecture}.gguf", architecture)
    for family, changes in FOLDERS.items():
        model = folder / family
        tiny_model(family, **NATIVE_SIZES, **changes).save_pretrained(model)  # type: ignore[operator]
        byte_level_backend().save(str(model / "tokenizer.json"))
        tokenizer_config = {"eos_token": "<|end|>", "chat_template": tiny_gguf.TEMPLATE}
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a damaged model, with an empty cache."""
    use_model_cache(tmp_path / "cache", monkeypatch)
    return tmp_path


def refusal(model: Path) -> str:
    """What `serve` and `plan` say of a model that cannot be served, without a traceback."""
    config = EngineConfig(model=str(model), device="cpu", threads=1, kv_cache_bytes=1 << 20)
    with pytest.raises(ModelLoadError) as error:
        build_engine(config, lambda line: None)
    with suppress(ModelLoadError):
        survey_model(config, lambda line: None)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# ---------------------------------------------------------------- GGUF

Metadata = dict[str, Any]
Tensors = list[tuple[str, Any, int, bytes]]
NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 900 + struct.pack("<IQ", 4, 0)


def key(name: str, value: Any) -> Callable[[Metadata, Tensors], None]:
    return lambda metadata, tensors: metadata.update({name: value})


def item(name: str, index: int, value: Any) -> Callable[[Metadata, Tensors], None]:
    return lambda metadata, tensors: metadata[name].__setitem__(index, value)


def shape(name: str, *sizes: int) -> Callable[[Metadata, Tensors], None]:
    def change(metadata: Metadata, tensors: Tensors) -> None:
        i = next(i for i, tensor in enumerate(tensors) if tensor[0] == name)
        tensors[i] = (name, sizes, *tensors[i][2:])

    return change


def without(name: str) -> Callable[[Metadata, Tensors], None]:
    def change(metadata: Metadata, tensors: Tensors) -> None:
        metadata.pop(name, None)
        tensors[:] = [tensor for tensor in tensors if tensor[0] != name]

    return change


def long_token(metadata: Metadata, tensors: Tensors) -> None:
    """Its merges would be looked for at each of its characters."""
    metadata["tokenizer.ggml.model"] = "llama"
    metadata["tokenizer.ggml.tokens"][7] = "a" * 5000


def twice(metadata: Metadata, tensors: Tensors) -> None:
    tensors.append(tensors[0])


TOKEN = "tokenizer.ggml."
BAD_GGUF: list[tuple[str, Callable[[Metadata, Tensors], None]]] = [
    ("llama", key("general.nested", NESTED)),
    ("llama", key("llama.attention.head_count", 0)),
    ("llama", key("llama.attention.head_count", 10**6)),
    ("llama", key("llama.attention.head_count_kv", 3)),
    *(("llama", key("llama.block_count", count)) for count in (0, 4 * 10**9, 2**63)),
    ("llama", key("llama.context_length", 2**40)),
    *(("llama", key("llama.embedding_length", size)) for size in (0, 2**31, 65)),
    ("llama", key("llama.feed_forward_length", 2**33)),
    *(
        ("llama", key("llama.attention.layer_norm_rms_epsilon", value))
        for value in (0.0, -1.0, float("nan"), 1e300)
    ),
    *(("llama", key("llama.rope.freq_base", value)) for value in (0.0, -1.0, float("inf"))),
    ("llama", key("llama.rope.dimension_count", 512)),
    ("llama", key("llama.rope.dimension_count", 16)),
    *(("phi3", key("phi3.rope.dimension_count", size)) for size in (512, 33, 0, 31)),
    ("phi3", key("phi3.attention.sliding_window", 2**33)),
    *(("qwen3moe", key("qwen3moe.expert_used_count", count)) for count in (0, 5, 2**32 + 1)),
    *(("qwen3moe", key("qwen3moe.expert_count", count)) for count in (0, 3, 10**9)),
    ("qwen3moe", key("qwen3moe.expert_feed_forward_length", 32)),
    ("llama", shape("token_embd.weight")),
    ("llama", shape("token_embd.weight", 300 * 64)),
    ("llama", shape("token_embd.weight", 0, 2**33)),
    ("llama", shape("token_embd.weight", 2**33, 0)),
    ("llama", shape("token_embd.weight", 2**33, 2**33)),
    ("llama", shape("blk.0.attn_q.weight", 2**33, 0)),
    ("llama", without("token_embd.weight")),
    ("llama", without("output_norm.weight")),
    ("llama", twice),
    ("llama", long_token),
    ("qwen3", without("blk.0.attn_k_norm.weight")),
    ("qwen3", without("blk.1.attn_q_norm.weight")),
    *(
        ("llama", key(f"{TOKEN}{name}_token_id", token_id))
        for name in ("bos", "eos", "padding", "unknown", "eot")
        for token_id in (16777216, -1, 300, 2**40)
    ),
    ("llama", key(f"{TOKEN}merges", ["nowhere tobefound"])),
    ("llama", item(f"{TOKEN}merges", 1, "h zzz")),
    ("llama", key(f"{TOKEN}tokens", [])),
    ("llama", key(f"{TOKEN}model", [1])),
    ("llama", key("general.architecture", ["llama"])),
    ("llama", key("general.alignment", 0)),
    ("llama", key("split.count", 4 * 10**9)),
]


@pytest.mark.parametrize(("architecture", "change"), BAD_GGUF)
def test_bad_gguf_files_are_refused(
    architecture: str, change: Callable[[Metadata, Tensors], None], models: Path, place: Path
) -> None:
    metadata, tensors = unpack_gguf(read_gguf(models / f"{architecture}.gguf"))
    change(metadata, tensors)
    path = place / "bad.gguf"
    path.write_bytes(pack_gguf(metadata, tensors))
    assert "bad" in refusal(path)


# ---------------------------------------------------------------- folders

DEEP = "[" * 100_000
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
PANIC = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<nowhere>", "type_id": 0}}, A],
    "pair": [A, B],
    "special_tokens": {},
}
BAD_FOLDERS: list[tuple[str, Any]] = [
    ("config.json", {"num_attention_heads": 0}),
    ("config.json", {"rope_parameters": 5}),
    ("config.json", {"rope_parameters": None, "rope_scaling": {"rope_type": "llama3"}}),
    ("config.json", {"rope_parameters": {"rope_type": ["default"]}}),
    ("config.json", {"hidden_size": "x"}),
    ("config.json", {"partial_rotary_factor": 4.0}),
    ("config.json", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 4.0}}),
    ("config.json", {"layer_types": ["full_attention"]}),
    ("config.json", {"vocab_size": 301}),
    ("config.json", {"num_hidden_layers": 3}),
    ("config.json", {"num_hidden_layers": 1}),
    ("config.json", {"max_position_embeddings": 10**30}),
    *((name, text) for name in ("config.json", "tokenizer.json") for text in ("", "{", "3", DEEP)),
    *(
        (name, text)
        for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
        for text in ("{", "[1]", "\udcff", DEEP)
    ),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}),
    ("tokenizer.json", {"model": 5}),
    ("tokenizer.json", {"decoder": {"type": "nothing"}}),
    ("tokenizer.json", {"added_tokens": [{"id": -1}]}),
    ("tokenizer.json", {"post_processor": PANIC}),
    ("generation_config.json", {"eos_token_id": [-1]}),
    ("generation_config.json", {"eos_token_id": 2**40}),
    ("chat_template.jinja", "\udcff"),
    ("model.safetensors", ""),
    ("model.safetensors", "\x02\0\0\0\0\0\0\0[]"),
    ("model.safetensors", "\udcff" * 16),
    ("model.safetensors", "\x08\x27\0\0\0\0\0\0" + "[" * 10_000),
]


@pytest.mark.parametrize(
    ("name", "content"), BAD_FOLDERS, ids=[f"{n}-{c!r}"[:70] for n, c in BAD_FOLDERS]
)
def test_bad_folders_are_refused(name: str, content: Any, models: Path, place: Path) -> None:
    folder = place / "bad"
    shutil.copytree(models / "llama", folder)
    if isinstance(content, dict):
        content = json.dumps({**(read_json(folder / name) or {}), **content})
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "bad" in refusal(folder)


# ---------------------------------------------------------------- through PyTorch


def pytorch_refusal(model: Path) -> str:
    config = EngineConfig(model=str(model), device="cpu", backend="transformers", threads=1)
    with pytest.raises(ModelLoadError) as error:
        build_engine(config, lambda line: None)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"intermediate_size": 96}, r"bad: mismatched keys: model\.layers\.0\.mlp\.down_proj"),
        ({"intermediate_size": 2**24}, "describes .* weights, which are more than its files"),
        ({"hidden_size": None}, "bad"),
        ({"partial_rotary_factor": 4.0}, r"bad/config\.json: .*partial_rotary_factor is 4"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "bad: .*KeyError"),
        ({"attention_bias": "x"}, "cannot load bad: "),
        ({"attention_bias": True}, r"bad: missing keys: model\.layers\.0\.self_attn\.k_proj\.bias"),
    ],
)
def test_bad_configs_are_refused_by_pytorch_too(
    changes: dict[str, Any], expected: str, models: Path, place: Path
) -> None:
    folder = place / "bad"
    shutil.copytree(models / "llama", folder)
    config = {**(read_json(folder / "config.json") or {}), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    assert re.search(expected, pytorch_refusal(folder))


def test_tables_that_no_file_explains_are_refused_by_pytorch(
    models: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-J keeps a table of angles for all positions, which no tensor of its files has."""
    config = {"model_type": "gptj", "n_positions": 2**31 - 1, "rotary_dim": 8, "n_embd": 32}
    shutil.copytree(models / "llama", place / "bad")
    sizes = {"n_layer": 1, "n_head": 2, "vocab_size": 300, "architectures": ["GPTJForCausalLM"]}
    (place / "bad" / "config.json").write_text(json.dumps({**config, **sizes}))
    assert "describes tables of 17179869176 numbers" in pytorch_refusal(place / "bad")


def test_a_gguf_file_that_was_changed_is_converted_again(
    models: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only weights that no sample has are others, of a file of equal size."""
    monkeypatch.setattr(cache, "SAMPLE_BYTES", 1)
    monkeypatch.setattr(cache, "NUM_SAMPLES", 1)
    path = place / "model.gguf"
    shutil.copy(models / "llama.gguf", path)
    before, (row, name) = pytorch_weights(path), (0, "model.norm.weight")
    tensor = read_gguf(path).tensors["output_norm.weight"]
    content = bytearray(path.read_bytes())
    place_in_file = content.find(tensor.data.tobytes())
    content[place_in_file : place_in_file + 4] = struct.pack("<f", 7.0)
    path.write_bytes(content)
    after = pytorch_weights(path)
    assert (after[name][row], before[name][row] == 7.0) == (7.0, False)


def pytorch_weights(path: Path) -> dict[str, Any]:
    config = EngineConfig(model=str(path), device="cpu", backend="transformers", threads=1)
    files = resolve_model(config, lambda line: None)
    module = load_module(files, config, torch.device("cpu"), torch.float32)
    return dict(module.named_parameters())


def test_surplus_tensors_of_a_gguf_file_are_refused_by_pytorch_too(
    models: Path, place: Path
) -> None:
    metadata, tensors = unpack_gguf(read_gguf(models / "llama.gguf"))
    tensors.append(("blk.0.attn_q_norm.weight", (32,), 0, bytes(128)))
    (place / "bad.gguf").write_bytes(pack_gguf(metadata, tensors))
    assert "unexpected keys: model.layers.0.self_attn.q_norm" in pytorch_refusal(place / "bad.gguf")


# ---------------------------------------------------------------- the one place


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("a"), r"cannot read x\.json: it is not a valid json file; .*: KeyError: 'a'$"),
        (ValueError("b\nc"), r"not a valid json file; download it again: b$"),
        (RecursionError(), "RecursionError: no message"),
        (OSError(5, "broken disk"), r"cannot read x\.json: \[Errno 5\] broken disk$"),
        (MemoryError(), r"not enough memory to load x\.json"),
        (BaseException("a panic"), "BaseException: a panic"),
        (EngineError("as it is"), "^as it is$"),
    ],
)
def test_any_error_names_the_file(error: BaseException, expected: str) -> None:
    with pytest.raises(EngineError, match=expected), reading(Path("x.json")):
        raise error


def test_interrupts_pass() -> None:
    with pytest.raises(KeyboardInterrupt), reading(Path("x.json")):
        raise KeyboardInterrupt


def test_whole_models_are_not_called_files() -> None:
    message = r"^cannot load llama-3\.1: TypeError: x$"
    with pytest.raises(ModelLoadError, match=message), reading("llama-3.1"):
        raise TypeError("x")


# ---------------------------------------------------------------- random damage


def bad_outcomes(models: Path, children: int, cases: int) -> list[str]:
    """Load damaged models in child processes, each with a limit of memory and time."""
    command = [sys.executable, "-m", "tests.models.load_mutations", str(models)]
    processes = [
        subprocess.Popen(
            [*command, str(i * cases), str((i + 1) * cases)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=child_environment(),
        )
        for i in range(children)
    ]
    outcomes: dict[int, tuple[str, str]] = {}
    bad = []
    for process in processes:
        output, errors = process.communicate()
        outcomes.update(
            (case, (done, end)) for case, done, end in map(json.loads, output.splitlines())
        )
        if process.returncode:
            bad.append(f"a process ended with {process.returncode}: {errors[-1000:]}")
    ends = [end for _, end in outcomes.values()]
    bad += [f"{d}: {e}" for d, e in outcomes.values() if not e.startswith(("answers", "refused: "))]
    bad += [end for end in ends if "\n" in end or len(end) > 800]
    assert bad or (len(ends) == children * cases and 0.1 < ends.count("answers") / len(ends) < 0.6)
    return bad


def child_environment() -> dict[str, str]:
    import os

    path = os.pathsep.join(str(ROOT / name) for name in (".", "server", "models"))
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.slow
def test_randomly_damaged_files_are_refused_or_answer(models: Path, place: Path) -> None:
    assert bad_outcomes(models, children=1, cases=40) == []


@pytest.mark.slow
@pytest.mark.nightly
def test_many_randomly_damaged_files(models: Path, place: Path) -> None:
    assert bad_outcomes(models, children=2, cases=4000) == []
