"""Measure what images cost: the processor, the vision tower, and the time to the first token.

Without `--model`, a model with the shape of SmolVLM-256M (SigLIP base, SmolLM2 135M) and random
weights is made, whose processor makes one tile of an image. No HTTP is in the figures. Example:

    python scripts/bench/images.py --backend transformers --size 512x512 --rounds 5
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from stonechat_models import (
    EngineConfig,
    GenerateRequest,
    ImageOptions,
    MediaInput,
    MediaProcessor,
    PreparedMedia,
    SamplingParams,
)
from stonechat_models.engine.engine import Engine
from stonechat_models.runtime.build import build_engine
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_server.client.synthetic_images import png

TILE = 512
TEXT = "What do you see in this picture? Answer in one short sentence."
TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or make_model(Path(scratch) / "model")
        engine, tokenizer = build(folder, arguments)
        assert engine.model.info.images is not None, engine.model.info.image_refusal
        processor = MediaProcessor(folder, engine.model.info.media_token_ids)
        try:
            measure(engine, tokenizer, processor, arguments)
        finally:
            processor.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder with a model that takes images")
    parser.add_argument("--backend", default="auto", choices=["auto", "native", "transformers"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="512x512", help="width and height of the images")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def build(folder: Path, arguments: argparse.Namespace) -> tuple[Engine, Tokenizer]:
    config = EngineConfig(
        model=str(folder),
        backend=arguments.backend,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
        max_batch_tokens=2048,
    )
    engine, tokenizer = build_engine(config, lambda line: print(line, file=sys.stderr))
    assert isinstance(engine, Engine)
    return engine, tokenizer


def measure(
    engine: Engine, tokenizer: Tokenizer, processor: MediaProcessor, arguments: argparse.Namespace
) -> None:
    """Print the median of each figure. The kinds of requests take turns."""
    width, height = (int(number) for number in arguments.size.split("x"))
    prepared: list[PreparedMedia] = []
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object]) -> None:
        started = time.perf_counter()
        run()
        times.setdefault(name, []).append(time.perf_counter() - started)

    processor.prepare([png(width, height, "first")], ImageOptions()).result()  # starts its process
    first_token(engine, tokenizer, "Hello. ", None)
    for number in range(arguments.rounds):
        data = png(width, height, str(number))
        timed("processor", partial(add_prepared, prepared, processor, data))
        image = prepared[-1]
        timed("text alone", partial(first_token, engine, tokenizer, f"Text {number}. ", None))
        seen = engine.stats().image_encode_seconds
        timed("new image", partial(first_token, engine, tokenizer, "", image))
        times.setdefault("tower", []).append(engine.stats().image_encode_seconds - seen)
        timed(
            "image in another conversation",
            partial(first_token, engine, tokenizer, "Another. ", image),
        )
        timed(
            "image in the next turn",
            partial(first_token, engine, tokenizer, "", image, "And now? "),
        )
    num_text_tokens = len(tokenizer.encode(TEXT))
    print(
        f"{prepared[0].num_tokens} tokens of an image of {width} x {height}, {num_text_tokens} of "
        f"text, backend {engine.model.info.backend}"
    )
    for name in ("processor", "tower"):
        seconds = statistics.median(times.pop(name))
        print(f"{name:30s} {1000 * seconds:8.1f} ms  {1 / seconds:8.2f} images/s")
    for name, values in times.items():
        print(f"{name:30s} {1000 * statistics.median(values):8.1f} ms to the first token")


def add_prepared(prepared: list[PreparedMedia], processor: MediaProcessor, data: bytes) -> None:
    prepared += processor.prepare([data], ImageOptions()).result()


def first_token(
    engine: Engine, tokenizer: Tokenizer, before: str, image: PreparedMedia | None, after: str = ""
) -> None:
    """Run a request up to its first token."""
    place = "" if image is None else image.text
    token_ids = tokenizer.encode(f"User: {before}{place}{TEXT}{after}\nAssistant:")
    images: tuple[MediaInput, ...] = ()
    if image is not None:
        info = engine.model.info.images
        assert info is not None, "the model takes no images"
        token_id = info.token_id
        places = [at for at, token in enumerate(token_ids) if token == token_id]
        assert len(places) == image.num_tokens
        images = (image.placed(runs(places)),)
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    engine.add(
        GenerateRequest(request_id="a", prompt_token_ids=token_ids, params=params, media=images)
    )
    while engine.has_work:
        engine.step()


def runs(places: list[int]) -> tuple[tuple[int, int], ...]:
    """Ascending positions as runs: the start and the length of each."""
    starts = [at for i, at in enumerate(places) if i == 0 or places[i - 1] != at - 1]
    ends = [at + 1 for i, at in enumerate(places) if at + 1 not in places[i + 1 : i + 2]]
    return tuple((start, end - start) for start, end in zip(starts, ends, strict=True))


def make_model(folder: Path) -> Path:
    """Write a model with the shape of SmolVLM-256M, random weights, and tokens for bytes."""
    from transformers import AutoModelForImageTextToText, SmolVLMConfig

    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": TILE,
        "patch_size": 16,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 49_280,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    folder.mkdir()
    image_token = write_tokenizer(folder)
    config = SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=4, image_token_id=image_token
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "size": {"longest_edge": TILE},
        "max_image_size": {"longest_edge": TILE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 64})
    )
    return folder


def write_tokenizer(folder: Path) -> int:
    """Write a tokenizer whose tokens are bytes and those of images. Return the placeholder's id."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_tokens([*TOKENS, *grid], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return int(tokenizer.convert_tokens_to_ids("<image>"))


if __name__ == "__main__":
    main()
