"""Flags that llama.cpp, vLLM and SGLang have, and what stands for them here."""

from collections.abc import Collection

_OURS = {
    "MODEL": ("-m", "-hf", "--hf-repo", "--model-path"),
    "--max-model-len": ("-c", "--ctx-size", "--context-length"),
    "--max-num-seqs": ("-np", "--parallel", "--max-running-requests"),
    "--max-batch-tokens": ("-b", "--batch-size", "--max-num-batched-tokens"),
    "--threads": ("-t",),
    "--device": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "--kv-cache-dtype": ("-ctk", "-ctv", "--cache-type-k", "--cache-type-v"),
    "--kv-cache-fraction": ("--gpu-memory-utilization", "--mem-fraction-static"),
    "--tensor-parallel": ("-tp", "--tp", "--tensor-parallel-size"),
    "--quantize": ("--quantization",),
    "--draft-model": ("-md", "--model-draft", "--speculative-model"),
    "--served-model-name": ("-a", "--alias"),
    "--chat-template": ("--chat-template-file",),
    "--tool-format": ("--tool-call-parser",),
    "--reasoning": ("--reasoning-format", "--reasoning-parser"),
    "--lora": ("--lora-modules",),
    "--max-images": ("--limit-mm-per-prompt",),
    "--allow-image-urls": ("--allowed-media-domains",),
}
_ALWAYS_ON = frozenset(
    ("--jinja", "--enable-auto-tool-choice", "--metrics", "-cb", "--cont-batching", "-fa")
)


def what_stands_for(flag: str, known: Collection[str]) -> str:
    """The end of a sentence that says there is no `flag`; empty if no other server has it.

    `known` are the flags of the command, and the names of its other words.
    """
    if flag in _ALWAYS_ON and "--max-num-seqs" in known:
        return ": what it switches on is always on here"
    ours = next((name for name, others in _OURS.items() if flag in others), "")
    if ours not in known:
        return ""
    return ": give MODEL without it" if ours == "MODEL" else f": here it is {ours}"
