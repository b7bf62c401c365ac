"""What is known of a loaded model, and of the engine that runs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_PROMPT_LOGITS_BYTES = 256 << 20
"""A step computes at most this much of float32 logits for log-probabilities of prompts."""
ModelUse = Literal["generation", "embeddings", "reranking", "transcription"]
"""What a model does. One that generates may also make embeddings, or score documents."""
PairTemplate = Literal["pair", "chat", "rerank"]
"""What makes the prompt of a question and a document: the tokenizer, as a pair of texts; the chat
template, as messages with the roles `query` and `document`; or the template `rerank` of a GGUF
file, with `{query}` and `{document}` in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """Sampling parameters that the model's makers recommend; None: they name none.

    They apply where a request leaves the parameter out.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingInfo:
    """The embeddings that a model makes."""

    size: int
    """Numbers in an embedding."""
    pooling: str
    """How the hidden states of a text's tokens become one vector."""
    is_normalized: bool
    """Whether embeddings have the length 1 unless a request decides it."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts that the model's makers put before inputs, by name."""
    default_prompt: str = ""
    """The name of the prompt for inputs whose request names none."""
    skips_prompt: bool = False
    """Whether a prompt's tokens do not count in the pooling."""
    lower_case: bool = False
    """Whether texts are made lower case first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingInfo:
    """How a model scores pairs of a question and a document."""

    activation: str
    """What makes the score of the model's number: the name of an activation of PyTorch."""
    prompt: str = ""
    """What the model's makers put before each question; the system message, if there is a chat
    template."""
    lower_case: bool = False
    """Whether texts are made lower case first."""
    template: PairTemplate = "pair"
    token_ids: tuple[int, ...] = ()
    """Of a model that generates: the number is the first one's logit at the end of a prompt, less
    that of the second one if there are two. Empty: a head makes the number of the last hidden
    state."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given beside the messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftInfo:
    """The model that drafts tokens for the one that is served."""

    name: str
    architecture: str
    num_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    """In a KV cache of its own, which has as many tokens as that of the model that is served."""
    num_draft_tokens: int
    """How many tokens it drafts at most for a sequence in a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """A LoRA adapter beside the model. Requests choose it by its name."""

    name: str
    rank: int
    """Its highest rank."""
    num_weights: int
    """How many weights of the model it changes."""
    num_bytes: int
    """What it takes in memory."""
    weights_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """How the prompts of a model hold images."""

    token_id: int
    """The placeholder token. It may be beyond the model's vocabulary."""
    bidirectional: bool = False
    """Whether the tokens of a run of placeholders attend to each other in both directions. Such a
    run is computed in one step."""
    has_grid_positions: bool = False
    """Whether the tokens of an image have rotary positions in three dimensions (M-RoPE)."""
    encoding_bytes: int = 0
    """What the vision tower needs beside its weights for a large image, on CUDA; else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """How the prompts of a model hold audio clips."""

    token_id: int
    """The placeholder token. It may be beyond the model's vocabulary."""
    encoding_bytes: int = 0
    """What the audio tower needs beside its weights for a long clip, on CUDA; else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """How the prompts of a model hold videos. The tower for images encodes their frames."""

    token_id: int
    """The placeholder token. It may be beyond the model's vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechInfo:
    """How a model transcribes speech."""

    languages: tuple[str, ...]
    """The codes of the languages that it knows. Empty: English only, and it does not translate."""
    max_prompt_tokens: int
    """How long the text before a transcript may be."""
    prompt_id: int
    """The token before that text."""
    start_id: int
    """The token that starts a transcript."""
    has_words: bool
    """Whether it can say when each word is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What was loaded and how it runs: for the start banner, `/v1/models` and the fingerprint."""

    name: str
    architecture: str
    vocab_size: int
    device: str
    dtype: str
    quantization: str
    """none, int8, int4 or fp8; or the GGUF type that is kept, such as Q4_1. Modules that are not
    quantised are named, as in `int8 (not: mixer)`."""
    backend: str
    num_parameters: int
    weight_bytes: int
    weights_hash: str
    block_size: int
    threads: int
    num_ranks: int = 1
    """How many devices share the model. `threads` and `kv_bytes_per_token` are those of one."""
    attention_backend: str = ""
    kv_bytes_per_token: int = 0
    num_blocks: int = 0
    max_model_len: int = 0
    max_batch_tokens: int = 0
    max_num_seqs: int = 0
    """This field and the three above it are 0 until the KV cache is sized."""
    keeps_state: bool = False
    """Whether the model keeps more of a sequence than the KV cache has."""
    packs_prompts: bool = True
    """Whether one call of the model computes all sequences of a step. If not, each prompt is a call
    of its own."""
    state_bytes: int = 0
    """Bytes of recurrent state per sequence."""
    num_state_slots: int = 0
    exact_chunks: bool = True
    """False if the model must compute a prompt in one piece."""
    sampling_defaults: SamplingDefaults = SamplingDefaults()
    adapter: str = ""
    """The LoRA adapter that is merged into the weights."""
    adapters: tuple[AdapterInfo, ...] = ()
    """The LoRA adapters that are computed beside the model, each for the requests that name it."""
    file_format: str = ""
    """That of the files with the weights: safetensors, gguf or pickle."""
    notes: tuple[str, ...] = ()
    """What the user should know of the model's files."""
    generates: bool = True
    """False for a model that only makes embeddings, scores or transcripts. A reranker may have a
    KV cache."""
    embedding: EmbeddingInfo | None = None
    """The embeddings that the model makes; None if it makes none."""
    ranking: RankingInfo | None = None
    """How the model scores documents; None if it is no reranker."""
    speech: SpeechInfo | None = None
    """How the model transcribes speech; None if that is not all it does."""
    draft: DraftInfo | None = None
    """The draft model; None if there is none."""
    images: ImageInfo | None = None
    """How prompts hold images; None if the model takes none."""
    image_refusal: str = ""
    """Why a model that could take images takes none here. Empty: it takes images, or cannot
    by its nature."""
    audio: AudioInfo | None = None
    """How prompts hold audio clips; None if the model takes none."""
    audio_refusal: str = ""
    """Why a model that could take audio takes none here. Empty: it takes audio, or cannot by its
    nature."""

    video: VideoInfo | None = None
    """How prompts hold videos; None if the model takes none."""
    video_refusal: str = ""
    """Why a model that could take videos takes none here. Empty: it takes videos, or cannot by its
    nature."""

    @property
    def media_token_ids(self) -> dict[str, int]:
        """The placeholder tokens of what the model takes beside text."""
        infos = {"image": self.images, "audio": self.audio, "video": self.video}
        return {modality: info.token_id for modality, info in infos.items() if info is not None}

    @property
    def use(self) -> ModelUse:
        """What the model is for."""
        if self.generates:
            return "generation"
        if self.speech is not None:
            return "transcription"
        return "embeddings" if self.ranking is None else "reranking"

    @property
    def kv_capacity_tokens(self) -> int:
        """How many tokens the KV cache can hold."""
        return self.num_blocks * self.block_size

    @property
    def max_prompt_rows(self) -> int:
        """How many rows of logits a step computes at most for log-probabilities of prompts."""
        return max(1, MAX_PROMPT_LOGITS_BYTES // (4 * self.vocab_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine. Counters run from the engine's start."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0
    """Blocks that live requests hold. Free blocks that still cache a prefix do not count."""
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cache_queried_tokens: int = 0
    num_cache_hit_tokens: int = 0
    num_drafted_tokens: int = 0
    """Draft tokens: from predictions, from the context, or of a draft model."""
    num_accepted_draft_tokens: int = 0
    """Draft tokens that were accepted."""
    num_model_drafted_tokens: int = 0
    """Those draft tokens that the draft model proposed."""
    num_accepted_model_draft_tokens: int = 0
    """Those of them that were accepted."""
    num_preemptions: int = 0
    num_failed_steps: int = 0
    num_encoded_images: int = 0
    """Images and pieces of videos that the vision tower has encoded."""
    num_image_cache_hits: int = 0
    """Images of requests that were encoded already."""
    image_encode_seconds: float = 0.0
    """Seconds of the vision tower."""
    num_encoded_audio: int = 0
    """Pieces of audio clips that the audio tower has encoded."""
    num_audio_cache_hits: int = 0
    """Pieces of audio clips of requests that were encoded already."""
    audio_encode_seconds: float = 0.0
    """Seconds of the audio tower."""
    last_step_seconds: float = 0.0


def size_text(num_bytes: float) -> str:
    """Return a size as all messages show it, in decimal units: `1 byte`, `2.5 kB`, `99.9 MB`."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} byte{'' if num_bytes == 1 else 's'}"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 999.95:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1000:,.1f} TB"
