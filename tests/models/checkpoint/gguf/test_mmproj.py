"""Which file is the vision part of a GGUF model, and what is refused with its reason."""

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from stonechat_models.checkpoint.gguf.mmproj import projectors_of, ranked_mmprojs
from stonechat_models.checkpoint.gguf.reader import GgufFile, read_gguf
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.hub import errors as hub_errors
from stonechat_models.checkpoint.hub import gguf_files as hub_gguf
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.checkpoint.vision_file import find_vision_file
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from tests.models.checkpoint.hub_cache import add_hub_model
from tests.models.media.prompts import VisionModel
from tests.models.tiny_gguf import write_tiny_gguf
from tests.models.tiny_mmproj import tower_tensors, write_mmproj, write_text


@dataclass
class Pair:
    """The two files of a tiny Gemma 3."""

    model: VisionModel
    text: Path
    mmproj: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    model = VisionModel(folder / "folder", "gemma3")
    text = write_text(model, "gemma3", folder / "gemma-3-Q8_0.gguf")
    return Pair(model, text, write_mmproj(model, "gemma3", folder / "mmproj-F32.gguf"))


@pytest.fixture
def files(pair: Pair, tmp_path: Path, caches: Path) -> Path:
    """A folder with copies of the two files, beside empty caches."""
    folder = tmp_path / "files"
    folder.mkdir()
    for path in (pair.text, pair.mmproj):
        shutil.copy(path, folder)
    return folder


def resolve(model: str | Path, **settings: object) -> ModelFiles:
    return resolve_model(EngineConfig(model=str(model), **settings), lambda line: None)  # type: ignore[arg-type]


def reason_of(model: str | Path, **settings: object) -> str:
    """Why a model takes no images, before it is loaded and when it is."""
    config = EngineConfig(model=str(model), **settings)  # type: ignore[arg-type]
    headers = read_headers(config, lambda line: None)
    found = resolve(model, **settings)
    assert found.config.model_type == headers.config.model_type
    assert found.image_refusal == headers.image_refusal
    return found.image_refusal


@pytest.mark.parametrize(
    ("files", "model", "expected"),
    [
        (["a.gguf", "mmproj-F16.gguf"], "a.gguf", "mmproj-F16.gguf"),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], "a.gguf", "mmproj-BF16.gguf"),
        (["x.mmproj-Q8_0.gguf", "x.mmproj-f32.gguf"], "x-Q8_0.gguf", "x.mmproj-Q8_0.gguf"),
        (
            ["mmproj-gemma-3-4b-it-f16.gguf", "mmproj-other-7b-bf16.gguf"],
            "gemma-3-4b-it-Q4_K_M.gguf",
            "mmproj-gemma-3-4b-it-f16.gguf",
        ),
        (
            ["mmproj-Qwen2-VL-7B-f16.gguf", "mmproj-Qwen2.5-VL-7B-f16.gguf"],
            "Qwen2-VL-7B-Q4_K_M.gguf",
            "mmproj-Qwen2-VL-7B-f16.gguf",
        ),
        (["mmproj-F16.gguf", "q4/mmproj-F32.gguf"], "q4/a.gguf", "q4/mmproj-F32.gguf"),
        (["mmproj-F16.gguf"], "q4/a.gguf", "mmproj-F16.gguf"),
        (["q8/mmproj-F16.gguf"], "q4/a.gguf", None),
        (["mmproj/a.gguf", "mmproj.md"], "a.gguf", None),
    ],
)
def test_the_nearest_part_of_the_most_alike_name(
    files: list[str], model: str, expected: str | None
) -> None:
    for given in (files, files[::-1]):
        assert next(iter(ranked_mmprojs(given, model)), None) == expected


def test_a_part_beside_a_model_is_found_and_can_be_left_out(files: Path, pair: Pair) -> None:
    found = resolve(files)
    assert (found.name, found.mmproj) == ("gemma-3-Q8_0", files / "mmproj-F32.gguf")
    assert [path.name for path in found.weights] == ["gemma-3-Q8_0.gguf", "mmproj-F32.gguf"]
    assert found.config.model_type == "gemma3"
    text = resolve(files, mmproj="none")
    assert (text.mmproj, text.config.model_type) == (None, "gemma3_text")
    assert found.folder.name.startswith(f"{text.folder.name}-")  # so it is removed with it
    assert "--mmproj none" in reason_of(files, mmproj="none")
    (files / "mmproj-F32.gguf").rename(files / "vision")
    assert "its vision part is not there" in reason_of(files)
    assert resolve(files, mmproj=str(files / "vision")).mmproj == files / "vision"


def test_models_of_text_alone_need_no_reason(files: Path) -> None:
    path = write_tiny_gguf(files / "llama.gguf", "llama")
    assert reason_of(path) == ""
    with pytest.raises(ModelLoadError, match="belongs to models of architecture gemma3, and llama"):
        resolve(path, mmproj=str(files / "mmproj-F32.gguf"))


def test_of_several_parts_the_one_that_fits_is_taken(files: Path, pair: Pair) -> None:
    write_mmproj(pair.model, "gemma3", files / "mmproj-gemma-3-BF16.gguf", projector="gemma9")
    assert resolve(files / "gemma-3-Q8_0.gguf").mmproj == files / "mmproj-F32.gguf"


def test_a_model_that_may_be_of_text_alone_needs_the_name_of_the_part(files: Path) -> None:
    """Most models of the architecture of SmolVLM's text are of text alone."""
    model = VisionModel(files / "folder", "idefics3")
    text = write_text(model, "idefics3", files / "SmolVLM-256M-Q8_0.gguf")
    part = write_mmproj(model, "idefics3", files / "mmproj-SmolVLM-256M-f16.gguf")
    assert resolve(text).mmproj == part
    other = text.rename(files / "Llama-256M-Q8_0.gguf")
    assert (resolve(other).mmproj, reason_of(other)) == (None, "")
    assert resolve(other, mmproj=str(part)).mmproj == part


def test_beside_an_adapter_a_part_must_be_named(files: Path) -> None:
    gguf, part = read_gguf(files / "gemma-3-Q8_0.gguf"), files / "mmproj-F32.gguf"
    for settings in ({"adapter": "a"}, {"lora": ("b=c",)}):
        config = EngineConfig(model="", **settings)  # type: ignore[arg-type]
        path, reason = find_vision_file(gguf, None, config, lambda line: None)
        assert path is None
        assert f"--mmproj {part} adds the vision part" in reason
        named = replace(config, mmproj=str(part))
        assert find_vision_file(gguf, None, named, lambda line: None) == (part, "")


Rewrite = Callable[[Pair, Path], object]
BROKEN: dict[str, tuple[Rewrite, str]] = {
    "a model": (
        lambda pair, path: shutil.copy(pair.text, path),
        "is not the vision or audio part of a model .* but a model of architecture 'gemma3'",
    ),
    "another type": (
        lambda pair, path: write_mmproj(pair.model, "gemma3", path, projector="gemma9"),
        "vision and audio parts of type 'gemma9' are not supported; those of type gemma3,",
    ),
    "another width": (
        lambda pair, path: write_mmproj(
            pair.model,
            "gemma3",
            path,
            tensors={
                name: values[:, :16] if name == "mm.input_projection.weight" else values
                for name, values in tower_tensors(pair.model, "gemma3").items()
            },
        ),
        "another model than .*: it makes embeddings of size 16, and the model has 32",
    ),
    "a missing key": (
        lambda pair, path: write_mmproj(
            pair.model, "gemma3", path, skip="clip.vision.attention.head_count"
        ),
        "vision.attention.head_count is missing",
    ),
    "too many layers": (
        lambda pair, path: write_mmproj(pair.model, "gemma3", path, depth=10**9),
        "vision.block_count is 1000000000, which is too large",
    ),
    "a missing tensor": (
        lambda pair, path: write_mmproj(
            pair.model,
            "gemma3",
            path,
            tensors={
                name: values
                for name, values in tower_tensors(pair.model, "gemma3").items()
                if name != "v.blk.1.attn_k.weight"
            },
        ),
        r"missing or have another shape: model.vision_tower.encoder.layers.1.self_attn.k_proj",
    ),
    "a surplus tensor": (
        lambda pair, path: write_mmproj(
            pair.model,
            "gemma3",
            path,
            tensors={
                **tower_tensors(pair.model, "gemma3"),
                "v.pre_ln.weight": pair.model.module.model.vision_tower.post_layernorm.weight,
            },
        ),
        "the tensor v.pre_ln.weight is not supported",
    ),
    "no GGUF file": (lambda pair, path: path.write_text("<html>"), "is not a valid gguf file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_part_that_does_not_fit_is_refused(kind: str, files: Path, pair: Pair) -> None:
    """With an error if the settings name it; else the text is served, and the reason is known."""
    rewrite, message = BROKEN[kind]
    path = files / "mmproj-F32.gguf"
    path.unlink()
    rewrite(pair, path)
    with pytest.raises(ModelLoadError, match=message):
        resolve(files / "gemma-3-Q8_0.gguf", mmproj=str(path))
    if kind == "a missing tensor":  # a plan does not know which tensors there must be
        reason = resolve(files / "gemma-3-Q8_0.gguf").image_refusal
    else:
        reason = reason_of(files / "gemma-3-Q8_0.gguf")
    assert re.search(message, reason)
    found = resolve(files / "gemma-3-Q8_0.gguf")
    assert (found.mmproj, found.config.model_type) == (None, "gemma3_text")


@pytest.mark.parametrize("kind", ["qwen3a", "ultravox"])
def test_beside_a_vision_part_an_audio_part_that_does_not_fit_is_left_out(
    kind: str, pair: Pair, tmp_path: Path, caches: Path
) -> None:
    part = write_mmproj(
        pair.model,
        "gemma3",
        tmp_path / "mmproj.gguf",
        tensors=tower_tensors(pair.model, "gemma3") | {"a.post_ln.weight": torch.ones(32)},
        add_audio=lambda writer: writer.add_clip_audio_projector_type(kind),
    )
    config = resolve(pair.text, mmproj=str(part)).config
    assert config.model_type == "gemma3"
    assert "audio_config" not in config.raw


def test_an_audio_part_of_an_unknown_type_is_refused_by_name() -> None:
    metadata = {"general.architecture": "clip", "clip.audio.projector_type": "ultravox"}
    with pytest.raises(UnsupportedModelError, match="of type 'ultravox' are not supported"):
        projectors_of(GgufFile(Path("mmproj.gguf"), {**metadata}, {}))


def test_only_gguf_models_have_such_a_part(pair: Pair) -> None:
    for read in (resolve_model, read_headers):
        config = EngineConfig(model=str(pair.model.folder), mmproj=str(pair.mmproj))
        with pytest.raises(ModelLoadError, match="is no GGUF file: its folder has its vision part"):
            read(config, lambda line: None)
    with pytest.raises(ModelLoadError, match="there is no file nothing"):
        resolve(pair.text, mmproj="nothing")


def test_a_part_in_the_hubs_cache(files: Path, caches: Path) -> None:
    content = {path.name: path.read_bytes() for path in files.iterdir()}
    add_hub_model(caches, "owner/tiny", content)
    for model in ("owner/tiny", "owner/tiny:Q8_0", "owner/tiny/gemma-3-Q8_0.gguf"):
        assert reason_of(model) == ""
        assert resolve(model).config.model_type == "gemma3"
    text = files / "gemma-3-Q8_0.gguf"
    (files / "mmproj-F32.gguf").unlink()
    found = resolve(text, mmproj="owner/tiny/mmproj-F32.gguf")
    assert found.config.model_type == "gemma3"


class Hub:
    """Plays a repository of the hub, and records what is downloaded from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloaded: list[str] = []

    def list_repo_files(self, repository: str, *, revision: str | None) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def info(self, name: str, revision: str | None) -> dict[str, object]:
        return {"name": name, "size": (self.folder / Path(name).name).stat().st_size}

    def open(self, name: str, mode: str, revision: str | None) -> io.BytesIO:
        content = (self.folder / Path(name).name).read_bytes()
        source = type("Source", (io.BytesIO,), {"size": len(content)})
        opened: io.BytesIO = source(content)
        return opened

    def download(
        self, repository: str, file: str, revision: str | None, *, only_cached: bool
    ) -> Path:
        if only_cached:
            raise OSError("nothing is cached")
        self.downloaded.append(file)
        place = self.folder.parent / file.partition(".")[0]  # no other file is beside it
        place.mkdir(exist_ok=True)
        return Path(shutil.copy(self.folder / file, place))


@pytest.fixture
def played(files: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub_played = Hub(files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module in (hub_errors, hub, hub_gguf):
        monkeypatch.setattr(module, "require_network", lambda: None)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(hub, "_download", hub_played.download)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub_played)
    monkeypatch.setattr("huggingface_hub.HfFileSystem", lambda: hub_played)
    return hub_played


def test_a_part_is_downloaded_with_its_model(played: Hub) -> None:
    read_headers(EngineConfig(model="owner/tiny:Q8_0"), lambda line: None)
    assert played.downloaded == []
    assert resolve("owner/tiny:Q8_0").config.model_type == "gemma3"
    assert played.downloaded == ["gemma-3-Q8_0.gguf", "mmproj-F32.gguf"]
    played.downloaded.clear()
    assert resolve("owner/tiny:Q8_0", mmproj="none").image_refusal
    assert played.downloaded == ["gemma-3-Q8_0.gguf"]


def test_a_plan_downloads_no_part_that_is_named(played: Hub, pair: Pair) -> None:
    settings = EngineConfig(model=str(pair.text), mmproj="owner/tiny/mmproj-F32.gguf")
    assert read_headers(settings, lambda line: None).config.model_type == "gemma3"
    assert played.downloaded == []


def test_a_part_that_does_not_fit_is_not_downloaded(played: Hub, pair: Pair) -> None:
    path = played.folder / "mmproj-F32.gguf"
    path.unlink()
    write_mmproj(pair.model, "gemma3", path, projector="gemma9")
    assert "of type 'gemma9' are not supported" in reason_of("owner/tiny:Q8_0")
    assert played.downloaded == ["gemma-3-Q8_0.gguf"]
