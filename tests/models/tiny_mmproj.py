"""Writes tiny models that see as two GGUF files, as llama.cpp's converter does.

What is split, offset or renamed is taken from that converter (`conversion/`), and the names come
from the `gguf` package's own map. Nothing here is taken from the reader under test.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tests.models.converted_gguf import write_converted
from tests.models.media.audio_prompts import AudioModel
from tests.models.media.prompts import VisionModel
from tests.models.vision_models import ALL_FAMILIES, vision_tokenizer

Tensors = Iterator[tuple[str, torch.Tensor]]
Writer = gguf.GGUFWriter
NORMAL, CONTROL, UNUSED = 1, 3, 5
TEXTS = {
    "gemma3": ("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig"),
    "qwen2_vl": ("qwen2vl", "Qwen2ForCausalLM", "Qwen2Config"),
    "qwen2_5_vl": ("qwen2vl", "Qwen2ForCausalLM", "Qwen2Config"),
    "qwen3_vl": ("qwen3vl", "Qwen3ForCausalLM", "Qwen3Config"),
    "lfm2_vl": ("lfm2", "Lfm2ForCausalLM", "Lfm2Config"),
    "qwen3_vl_moe": ("qwen3vlmoe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig"),
    "gemma4": ("gemma4", "Gemma4ForCausalLM", "Gemma4TextConfig"),
    "gemma4_small": ("gemma4", "Gemma4ForCausalLM", "Gemma4TextConfig"),
    "internvl": ("qwen2", "Qwen2ForCausalLM", "Qwen2Config"),
    "qwen3_5": ("qwen35", "Qwen3_5ForCausalLM", "Qwen3_5TextConfig"),
    "qwen3_5_moe": ("qwen35moe", "Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig"),
    "mistral3": ("mistral3", "MistralForCausalLM", "MistralConfig"),
    "idefics3": ("llama", "LlamaForCausalLM", "LlamaConfig"),
    "smolvlm": ("llama", "LlamaForCausalLM", "LlamaConfig"),
}
"""The architecture of the text's file, and the classes for the text alone."""


def write_text(
    model: VisionModel,
    name: str,
    path: Path,
    kind: gguf.GGMLQuantizationType | None = None,
    without: str = "",
) -> Path:
    """Write the language model and the tokenizer. `without`: a token that the vocabulary lacks."""
    tokenizer = vision_tokenizer(ALL_FAMILIES[name])
    return write_text_of(model, tokenizer, TEXTS[name], path, kind, without)


def write_text_of(
    model: VisionModel | AudioModel,
    tokenizer: PreTrainedTokenizerFast,
    names: tuple[str, str, str],
    path: Path,
    kind: gguf.GGMLQuantizationType | None = None,
    without: str = "",
) -> Path:
    """`names`: the architecture of the file, and the classes for the text alone."""
    whole, (architecture, class_name, config_name) = model.module, names
    config = whole.config.get_text_config().to_dict()
    config.pop("model_type")
    is_tied = getattr(whole.config, "tie_word_embeddings", config.get("tie_word_embeddings"))
    config["tie_word_embeddings"] = bool(is_tied)
    text = getattr(transformers, class_name)(getattr(transformers, config_name)(**config))
    weights = {f"model.{k}": v for k, v in whole.get_decoder().state_dict().items()}
    weights["lm_head.weight"] = whole.get_output_embeddings().weight
    text.load_state_dict(weights)

    def write_tokenizer(writer: Writer, vocab_size: int) -> None:
        template = (model.folder / "chat_template.jinja").read_text()
        add_tokenizer(writer, tokenizer, vocab_size, without, template)

    return write_converted(text, architecture, path, kind, write_tokenizer)


def add_tokenizer(
    writer: Writer, tokenizer: PreTrainedTokenizerFast, vocab_size: int, without: str, template: str
) -> None:
    ids = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    tokens = [ids.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    special = set(tokenizer.added_tokens_decoder)
    types = [CONTROL if i in special else NORMAL if i in ids else UNUSED for i in range(vocab_size)]
    if without:
        place = tokens.index(without)
        tokens[place], types[place] = "<unused7>", NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(template)


def gemma3(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    if name.startswith("model.vision_tower.head."):
        return
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
    name = name.replace("_projection_weight", "_projection.weight")
    yield name, tensor + 1 if name.endswith("soft_emb_norm.weight") else tensor


def qwen2(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    name = name.removeprefix("model.")
    if ".qkv." in name:
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            yield name.replace("qkv", part), rows
    elif name.endswith("patch_embed.proj.weight"):
        yield "v.patch_embd.weight", tensor[:, :, 0]
        yield "v.patch_embd.weight.1", tensor[:, :, 1]
    else:
        yield name, tensor


def qwen3(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    name, kind = name.removeprefix("model.").rsplit(".", 1)
    if "deepstack_merger_list" in name:
        _, _, number, part = name.split(".")
        layer = vision["deepstack_visual_indexes"][int(number)]
        yield f"v.deepstack.{layer}.{part.removeprefix('linear_')}.{kind}", tensor
    elif "visual.merger" in name:
        part = {"linear_fc1": "mm.0", "linear_fc2": "mm.2", "norm": "v.post_ln"}
        yield f"{part[name.split('.')[-1]]}.{kind}", tensor
    elif name.endswith("attn.qkv"):
        yield f"{name}.{kind}", tensor
    else:
        yield from qwen2(f"{name}.{kind}", tensor, vision)


def pixtral(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = tensor.unflatten(0, (vision["num_attention_heads"], 2, -1))
        tensor = heads.transpose(1, 2).reshape(tensor.shape)
    yield name.removeprefix("model."), tensor


def gemma4(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    name = name.replace("model.vision_tower.encoder.", "vision_model.model.")
    name = name.replace(".linear.weight", ".weight")
    if name.endswith("input_proj.weight"):
        size = vision["patch_size"]
        tensor = tensor.unflatten(1, (size, size, 3)).permute(0, 3, 1, 2)
    yield (
        name + ".weight" * name.endswith("position_embedding_table"),
        tensor.reshape(tensor.shape or (1,)),
    )


def lfm2(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
    if name.endswith("patch_embedding.weight"):
        size = vision["patch_size"]
        tensor = tensor.unflatten(1, (size, size, 3)).permute(0, 3, 1, 2)
    yield name, tensor


_MLP1 = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}
INTERNVL = {
    **{f"multi_modal_projector.{own}": f"mlp1.{number}" for own, number in _MLP1.items()},
    "embeddings.cls_token": "v.class_embd",
    "embeddings.position_embeddings": "v.position_embd.weight",
    "embeddings.patch_embeddings.projection": "v.patch_embd",
    "lambda_1": "ls1.weight",
    "lambda_2": "ls2.weight",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "projection_layer": "proj",
}


def internvl(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    """Names are those of the published models, which transformers has others for."""
    name = name.removeprefix("model.")
    for old, new in INTERNVL.items():
        name = name.replace(old, new)
    name = name.replace("vision_tower.v.", "v.")
    name = name.replace("vision_tower.encoder.layer.", "vision_tower.vision_model.encoder.layers.")
    for part in "qkv":
        name = name.replace(f"attention.{part}_proj", f"self_attn.{part}_proj")
    yield name.replace("attention.", "attn."), tensor


def unchanged(name: str, tensor: torch.Tensor, vision: dict[str, Any]) -> Tensors:
    yield name, tensor


def add_gemma3(writer: Writer, config: dict[str, Any], processor: Mapping[str, Any]) -> None:
    vision = config["vision_config"]
    per_side = vision["image_size"] // vision["patch_size"]
    scale = per_side // int(config["mm_tokens_per_image"] ** 0.5)
    if scale != 4:
        writer.add_vision_projector_scale_factor(scale)
    writer.add_vision_use_gelu(True)


def add_qwen25(writer: Writer, config: dict[str, Any], processor: Mapping[str, Any]) -> None:
    writer.add_vision_n_wa_pattern(config["vision_config"]["fullatt_block_indexes"][0] + 1)
    writer.add_vision_window_size(config["vision_config"]["window_size"])
    writer.add_vision_use_silu(True)


def add_qwen3(writer: Writer, config: dict[str, Any], processor: Mapping[str, Any]) -> None:
    vision = config["vision_config"]
    deep = vision.get("deepstack_visual_indexes") or []
    writer.add_vision_is_deepstack_layers([i in deep for i in range(vision["depth"])])
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_min_pixels(processor["size"]["shortest_edge"])
    writer.add_vision_use_gelu(True)


def add_pixtral(writer: Writer, config: dict[str, Any], processor: Mapping[str, Any]) -> None:
    writer.add_vision_spatial_merge_size(config["spatial_merge_size"])
    writer.add_vision_use_gelu(True)


def add_idefics3(writer: Writer, config: dict[str, Any], processor: Mapping[str, Any]) -> None:
    writer.add_vision_projector_scale_factor(config["scale_factor"])
    writer.add_vision_preproc_image_size(processor["size"]["longest_edge"])
    writer.add_vision_use_gelu(True)


def add_lfm2(writer: Writer, config: dict[str, Any], processor: Mapping[str, Any]) -> None:
    writer.add_vision_projector_scale_factor(config["downsample_factor"])
    writer.add_vision_use_gelu(True)


def add_internvl(writer: Writer, config: dict[str, Any], processor: Mapping[str, Any]) -> None:
    writer.add_vision_projector_scale_factor(int(1 / config["downsample_ratio"]))
    writer.add_vision_preproc_min_tiles(processor["min_patches"])
    writer.add_vision_preproc_max_tiles(processor["max_patches"])
    writer.add_vision_use_gelu(True)


Change = Callable[[str, torch.Tensor, dict[str, Any]], Tensors]
Add = Callable[[Writer, dict[str, Any], Mapping[str, Any]], None]
PROJECTORS: dict[str, tuple[str, Change, Add]] = {
    "gemma3": ("gemma3", gemma3, add_gemma3),
    "qwen2_vl": ("qwen2vl_merger", qwen2, lambda writer, config, processor: None),
    "qwen2_5_vl": ("qwen2.5vl_merger", qwen2, add_qwen25),
    "qwen3_vl": ("qwen3vl_merger", qwen3, add_qwen3),
    "lfm2_vl": ("lfm2", lfm2, add_lfm2),
    "qwen3_vl_moe": ("qwen3vl_merger", qwen3, add_qwen3),
    "gemma4": ("gemma4v", gemma4, lambda writer, config, processor: None),
    "gemma4_small": ("gemma4v", gemma4, lambda writer, config, processor: None),
    "internvl": ("internvl", internvl, add_internvl),
    "qwen3_5": ("qwen3vl_merger", qwen3, add_qwen3),
    "qwen3_5_moe": ("qwen3vl_merger", qwen3, add_qwen3),
    "mistral3": ("pixtral", pixtral, add_pixtral),
    "idefics3": ("idefics3", unchanged, add_idefics3),
    "smolvlm": ("idefics3", unchanged, add_idefics3),
}


BOUNDS = (".input_min", ".input_max", ".output_min", ".output_max")


def first(size: Any) -> int:
    """Return one side of an image or a patch; a config may have both."""
    return int(size[0] if isinstance(size, list | tuple) else size)


def tower_tensors(model: VisionModel | AudioModel, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the file of the vision part."""
    whole, (_, change, _) = model.module, PROJECTORS[name]
    vision = whole.config.vision_config.to_dict()
    depth = vision.get("depth") or vision["num_hidden_layers"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, max(depth, 4))
    decoder = whole.get_decoder()
    text = {id(p) for p in (*decoder.parameters(), *decoder.buffers())}
    text.add(id(whole.get_output_embeddings().weight))
    tensors: dict[str, torch.Tensor] = {}
    kept = whole.state_dict().keys()
    for own, parameter in (*whole.named_parameters(), *whole.named_buffers()):
        if own not in kept or "audio" in own:
            continue
        for changed, values in change(own, parameter, vision) if id(parameter) not in text else ():
            target = names.get_name(changed, try_suffixes=(".weight", ".bias", *BOUNDS)) or changed
            assert target.startswith(("v.", "mm.")), target
            tensors[target] = values
    if name == "mistral3":
        tensors["v.token_embd.img_break"] = whole.get_input_embeddings().weight[5]
    return tensors


def write_mmproj(
    model: VisionModel | AudioModel,
    name: str,
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tensors: Mapping[str, torch.Tensor] | None = None,
    skip: str = "",
    projector: str = "",
    depth: int = 0,
    add_audio: Callable[[Writer], None] | None = None,
) -> Path:
    """Write the vision part. Matrices are `kind` if their rows fit. `skip`: a metadata key.

    `depth`: another number of layers than there are. `add_audio` writes the metadata of an audio
    part, whose tensors are among `tensors`.
    """
    own_type, _, add = PROJECTORS[name]
    config = model.module.config.to_dict()
    vision, processor = config["vision_config"], ALL_FAMILIES[name].image_processor
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    if add_audio is None:
        writer.add_clip_projector_type(projector or own_type)
    else:
        writer.add_clip_vision_projector_type(projector or own_type)
        add_audio(writer)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    patch = first(vision["patch_size"])
    positions = vision.get("num_position_embeddings", 1600)
    writer.add_vision_image_size(first(vision.get("image_size") or positions**0.5 * patch))
    writer.add_vision_patch_size(patch)
    writer.add_vision_embedding_length(vision.get("embed_dim") or vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision.get("intermediate_size") or vision["hidden_size"])
    writer.add_vision_block_count(depth or vision.get("depth") or vision["num_hidden_layers"])
    writer.add_vision_head_count(vision.get("num_heads") or vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision.get("layer_norm_eps", 1e-6))
    writer.add_vision_image_mean(processor.get("image_mean", [0.0] * 3))
    writer.add_vision_image_std(processor.get("image_std", [1.0] * 3))
    add(writer, config, processor)
    if skip:
        del writer.kv_data[0][skip]
    return write_tensors(writer, tensors or tower_tensors(model, name), kind, path)


def write_tensors(
    writer: Writer,
    tensors: Mapping[str, torch.Tensor],
    kind: gguf.GGMLQuantizationType,
    path: Path,
) -> Path:
    """Write tensors and close the file. Matrices are `kind` if their rows fit."""
    for target, values in tensors.items():
        array = np.ascontiguousarray(values.detach().float().numpy())
        is_matrix = array.ndim == 2 and "position" not in target and "norm" not in target
        fits = array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        stored = kind if is_matrix and fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(target, gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
