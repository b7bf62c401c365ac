"""The settings of one model: where it is, how it computes, what chats get. `Settings` has more."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stonechat_server.options import detail, option, split
from stonechat_server.tool_formats.select import FORMATS

if TYPE_CHECKING:
    from stonechat_models import EngineConfig

    ToolFormatName = str
else:
    ToolFormatName = Literal["auto", *FORMATS]

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
Names = Annotated[list[str], NoDecode, BeforeValidator(split)]

# The headings of the settings in the help and the docs.
model_option = partial(option, group="Model")
chat_option = partial(option, group="Chat")
computing_option = partial(option, group="Computing")
memory_option = partial(option, group="Memory and batching")
models_option = partial(option, group="Several models")


class ModelSettings(BaseSettings):
    """What is set for a model. Lists are comma-separated in environment variables."""

    model_config = SettingsConfigDict(
        env_prefix="STONECHAT_",
        extra="forbid",
        protected_namespaces=(),
        frozen=True,
        defer_build=True,
    )

    model: str = model_option(
        DEFAULT_MODEL,
        "name on the Hugging Face hub (owner/name, owner/name:Q4_K_M, owner/name/file.gguf, or a "
        "URL), local folder with safetensors, or GGUF file",
        flag="MODEL",
    )
    revision: str | None = model_option(None, "branch, tag or commit of the Hugging Face model")
    adapter: str | None = model_option(
        None, "merge a LoRA adapter into the model's weights: its folder, or its name on the hub"
    )
    lora: Names = model_option(
        (),
        "serve a LoRA adapter, its folder or its name on the hub, as one more model of this name, "
        "in the same steps as the model (repeatable; runs through PyTorch)",
        metavar="NAME=DIR",
    )
    mmproj: str | None = model_option(
        None,
        "GGUF file with the vision and audio parts of a GGUF model, or its name on the hub, or "
        "none (default: the mmproj file beside the model or in its repository, if there is one)",
        metavar="FILE",
    )
    trust_remote_code: bool = model_option(False, "run the Python code that comes with the model")
    allow_pickle: bool = model_option(
        False, "load pickled weights; a pickle can run any code of its author"
    )
    generation_config: Literal["model", "none"] = model_option(
        "model",
        "sampling parameters of requests that leave them out (model: what its "
        "generation_config.json recommends; none: the defaults of the OpenAI API)",
    )
    embeddings: bool = model_option(
        False,
        "also serve a model that generates for embeddings: the final hidden state of a text's last "
        "token (models for embeddings need no flag)",
    )
    served_model_name: Names = chat_option(
        (), "name that requests give as `model` (repeatable; default: the model's name)"
    )
    chat_template: str | None = chat_option(
        None,
        "Jinja chat template to use instead of the model's own; a file, or the template's text",
    )
    tool_format: ToolFormatName = chat_option(
        "auto", "how the model writes tool calls (auto: detect it from the chat template)"
    )
    special_tokens_as_text: bool = chat_option(
        False,
        "encode special tokens that clients write into their texts as ordinary text, so that no "
        "text can end its turn and begin another; in files they are always text",
    )
    schema_in_prompt: bool = chat_option(
        True, "describe the required answer format to the model in the system message"
    )
    reasoning: bool = chat_option(True, "separate the model's reasoning from its answer")
    bare_calls: bool = chat_option(
        True,
        "read an answer that begins with a call's JSON, without the format's marks, as that call",
    )
    stop_repeated_calls: bool = chat_option(
        True, "end an answer before a call that repeats an earlier call of the same answer"
    )

    device: str = computing_option("auto", "device to compute on: auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = computing_option(
        "auto", "data type of the weights and activations"
    )
    quantize: Literal["auto", "none", "int8", "int4", "fp8"] = computing_option(
        "auto",
        "quantise the weights (auto: keep quantised weights as they are where the device's kernels "
        "can, quantise no other model; none: use floats; fp8 needs a GPU of compute capability 8.9 "
        "or more)",
    )
    backend: Literal["auto", "native", "transformers"] = computing_option(
        "auto",
        "code that computes the model (native: compiled CPU kernels, also where there is a GPU; "
        "transformers: the model's PyTorch code)",
    )
    attention_backend: Literal["auto", "triton", "batched", "sdpa"] = computing_option(
        "auto",
        "attention kernel of a model that PyTorch computes; compiled CPU kernels have their own",
    )
    device_map: str | None = computing_option(
        None, "set to auto to spread a model over several devices"
    )
    tensor_parallel: int = computing_option(
        1,
        "split every layer of the model between this many devices: the first CUDA devices, or as "
        "many processes on a CPU",
        ge=1,
        le=64,
    )
    threads: int | None = computing_option(None, "number of CPU threads that the engine uses", ge=1)
    deterministic: bool = computing_option(
        False, "use only kernels whose results do not depend on the batch"
    )
    eager: bool = computing_option(False, "do not use CUDA graphs")
    overlap: bool | None = computing_option(
        None,
        "start the next step before reading the previous step's tokens (default: only on CUDA)",
    )
    prompt_lookup: bool | None = computing_option(
        None,
        "draft tokens from repetitions in the context and verify several per step; answers do not "
        "change (default: with the compiled CPU kernels, where that is measured to be faster)",
    )
    draft_model: str | None = computing_option(
        None,
        "a smaller model of the same tokens, named like MODEL, that drafts tokens where that is "
        "measured to be faster; answers do not change (only on CPUs)",
    )
    num_draft_tokens: int = computing_option(
        8, "how many tokens the draft model drafts at most for a sequence in a step", ge=1, le=32
    )
    engine_process: bool | None = computing_option(
        None,
        "run the engine in its own process and restart it after a crash (default: only on CUDA)",
    )

    max_model_len: int | None = memory_option(
        None, "context length in tokens (default: the model's own)", ge=1
    )
    kv_cache_size: ByteSize | None = memory_option(None, "memory for the KV cache, such as 2GiB")
    kv_cache_fraction: float | None = memory_option(
        None,
        "share of the memory left after loading to use for the KV cache, if no size is set",
        gt=0.0,
        le=1.0,
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "int8", "fp8"] = memory_option(
        "auto",
        "data type of the cached keys and values (auto: that of the activations, or bfloat16 in "
        "compiled CPU kernels; only these have int8, and they have no fp8)",
    )
    image_cache_size: ByteSize = memory_option(
        ByteSize(256 * 2**20),
        "memory for encoded images, such as 256MiB, so that the same image in a later request is "
        "not encoded again; on a GPU of the GPU's memory, in what the KV cache leaves",
    )
    block_size: int = memory_option(16, "tokens per block of the KV cache", ge=1)
    max_batch_tokens: int | None = memory_option(
        None, "compute at most this many tokens per step", ge=1
    )
    max_num_seqs: int | None = memory_option(
        None, "run at most this many sequences at the same time", ge=1
    )
    prefix_caching: bool = memory_option(
        True, "keep the KV cache of prompts and reuse it for prompts with the same beginning"
    )

    models: dict[str, dict[str, Any]] = models_option(
        {}, "the models of the TOML file: a table [models.NAME] each"
    )

    def engine_config(self) -> "EngineConfig":
        """The settings of the engine."""
        from stonechat_models import EngineConfig

        values = {name: getattr(self, name) for name in ENGINE_SETTINGS}
        values["lora"] = tuple(self.lora)
        return EngineConfig(
            kv_cache_bytes=values.pop("kv_cache_size"),
            media_cache_bytes=values.pop("image_cache_size"),
            **values,
        )


ENGINE_SETTINGS = tuple(
    name
    for name, field in ModelSettings.model_fields.items()
    if detail(field, "group") in ("Model", "Computing", "Memory and batching")
)
"""The settings that make the `EngineConfig`."""
