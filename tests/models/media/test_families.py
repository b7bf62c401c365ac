"""Each family's answers to prompts with images equal those of plain transformers."""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import pytest

from tests.models.engines import add, greedy, make_engine, run
from tests.models.media.prompts import Prompt, VisionModel, noise
from tests.models.more_vision_families import NEED_TORCHVISION
from tests.models.vision_models import ALL_FAMILIES

REFUSED = ("paligemma", "ernie4_5_vl_moe")
USUAL = ("qwen3_5", "mistral3", "smolvlm", "glm4v")
IN_ALL_WAYS = ("qwen3_vl", "gemma3")
SERVED = [
    name
    for name in ALL_FAMILIES
    if name not in REFUSED and (name not in NEED_TORCHVISION or find_spec("torchvision"))
]
SIZES = ((90, 130), (64, 64), (200, 70), (33, 50), (120, 120), (64, 90), (150, 60), (80, 80))
IMAGES = [noise(size, seed) for seed, size in enumerate(SIZES)]
NUM_OUTPUT = 5
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in chunks": {"max_batch_tokens": 37, "media_cache_bytes": 4096},
    "preempted": {"max_batch_tokens": 37, "prefix_caching": False},
}
MIN_BATCH_TOKENS = {"gemma3": 112, "gemma4": 112}
"""Where a chunk does not end inside an image."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], VisionModel]:
    """Makes a model by its name, and keeps the latest."""
    return lru_cache(1)(lambda name: VisionModel(tmp_path_factory.mktemp("models") / name, name))


def prompts(model: VisionModel) -> dict[str, Prompt]:
    return {
        "one": model.prompt("Look: # What is it?", IMAGES[0]),
        "two": model.prompt("Is # like # or not?", *IMAGES[1:3]),
        "text": model.prompt("No image at all"),
        "again and seven": model.prompt("a#b#c##d#e#f#g#", *IMAGES),
    }


def engine_of(model: VisionModel, name: str, **settings: Any) -> Any:
    least = MIN_BATCH_TOKENS.get(name, 0)
    settings["max_batch_tokens"] = max(settings.get("max_batch_tokens", 8192), least)
    vocab_size = model.module.config.get_text_config().vocab_size
    limits = {"max_model_len": 8192, "vocab_size": vocab_size, "num_blocks": 3000}
    engine = make_engine(model.module, media=True, **{**limits, **settings})
    assert engine.model.info.images is not None, engine.model.info.image_refusal
    return engine


def check(model: VisionModel, result: Any, prompt: Prompt) -> None:
    token_ids, logprobs = model.reference(prompt, NUM_OUTPUT)
    assert result.error is None
    assert result.token_ids == token_ids
    assert [x.logprob for x in result.logprobs] == pytest.approx(logprobs, abs=2e-4)


def cases() -> list[Any]:
    usual = {(name, "whole") for name in USUAL}
    usual |= {(name, way) for name in IN_ALL_WAYS for way in WAYS if way != "whole"}
    return [
        pytest.param(name, way, marks=[] if (name, way) in usual else [pytest.mark.nightly])
        for name in SERVED
        for way in WAYS
    ]


@pytest.mark.parametrize(("name", "way"), cases())
def test_answers_equal_plain_transformers(
    models: Callable[[str], VisionModel], name: str, way: str
) -> None:
    model = models(name)
    requests = prompts(model)
    settings = dict(WAYS[way])
    longest = requests["again and seven"]
    if way == "preempted":  # room for the longest prompt, but not for all
        settings["num_blocks"] = len(longest.token_ids) // 4 + 5
    engine = engine_of(model, name, **settings)
    if way == "preempted":  # others of a better priority come while it is computed
        del requests["again and seven"]
        params = greedy(NUM_OUTPUT)
        add(engine, "long", longest.token_ids, params, media=longest.media, priority=1)
        assert not engine.step()
    for key, prompt in requests.items():
        add(engine, key, prompt.token_ids, greedy(NUM_OUTPUT), media=prompt.media)
    results = run(engine)
    for key, prompt in requests.items():
        check(model, results[key, 0], prompt)
    if way == "preempted":
        check(model, results["long", 0], longest)
        assert engine.stats().num_preemptions > 0
        return
    turn = model.prompt("Look: # What is it? And #", IMAGES[0], IMAGES[4])
    add(engine, "turn", turn.token_ids, greedy(NUM_OUTPUT, n=2), media=turn.media)
    results = run(engine)
    if name != "llava_onevision":  # it prepares the image otherwise now
        assert results["turn", 0].num_cached_tokens >= turn.media[0].num_tokens
    for i in range(2):
        check(model, results["turn", i], turn)


def test_a_lost_recurrent_state_is_computed_again_with_the_images(
    models: Callable[[str], VisionModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("qwen3_5")
    engine = engine_of(model, "qwen3_5", media_cache_bytes=0)
    requests = {"a": prompts(model)["one"], "b": prompts(model)["text"]}
    for key, prompt in requests.items():
        add(engine, key, prompt.token_ids, greedy(NUM_OUTPUT), media=prompt.media)
    forward, steps = engine.model.forward, []

    def fail_later(batch: Any) -> Any:
        steps.append(batch)
        if len(steps) == 3:
            raise RuntimeError("once")
        return forward(batch)

    monkeypatch.setattr(engine.model, "forward", fail_later)
    results = run(engine)
    for key, prompt in requests.items():
        check(model, results[key, 0], prompt)
    assert (engine.stats().num_failed_steps, engine.stats().num_encoded_images) == (1, 2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("paligemma", "its tokens attend to later ones"),
        ("ernie4_5_vl_moe", "a step with images gives other logits"),  # image tokens' own experts
    ],
)
def test_a_family_that_the_engine_would_compute_wrongly_is_refused(
    models: Callable[[str], VisionModel], name: str, reason: str
) -> None:
    module = models(name).module
    vocab_size = module.config.get_text_config().vocab_size
    info = make_engine(module, media=True, vocab_size=vocab_size).model.info
    assert info.images is None
    assert info.image_refusal.startswith(reason)
