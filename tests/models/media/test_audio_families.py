"""Each family's answers to prompts with audio equal those of plain transformers."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from stonechat_models.media.hf_processor import HFProcessor
from tests.models.audio_families import FAMILIES
from tests.models.engines import add, greedy, make_engine, run
from tests.models.media.audio_prompts import AudioModel, sound
from tests.models.media.prompts import Prompt, noise

CLIPS = [sound(seconds, seed) for seed, seconds in enumerate((1.1, 1.7, 3.1, 1.4))]
NUM_OUTPUT = 5
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in chunks": {"max_batch_tokens": 37, "media_cache_bytes": 4096},
    "preempted": {"max_batch_tokens": 37, "prefix_caching": False},
}
USUAL = ("qwen2_5_omni_thinker", "qwen2_audio", "glmasr", "qwen3_asr", "voxtral")
DAILY = {*((name, "whole") for name in USUAL), ("gemma4", "in chunks"), ("gemma4", "preempted")}
CASES = [
    pytest.param(name, way, marks=[] if (name, way) in DAILY else [pytest.mark.nightly])
    for name in FAMILIES
    for way in WAYS
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AudioModel]:
    """Makes a model by its name, and keeps the latest."""
    return lru_cache(1)(lambda name: AudioModel(tmp_path_factory.mktemp("models") / name, name))


def prompts(model: AudioModel) -> dict[str, Prompt]:
    return {
        "one": model.prompt("Listen: # What is it?", CLIPS[0]),
        "two": model.prompt("Is # like # or not?", *CLIPS[1:3]),
        "text": model.prompt("No sound at all"),
        "again": model.prompt("a#b#c", CLIPS[0], CLIPS[3]),
    }


def engine_of(model: AudioModel, **settings: Any) -> Any:
    vocab_size = model.module.config.get_text_config().vocab_size
    limits = {"max_model_len": 8192, "max_batch_tokens": 8192, "num_blocks": 3000}
    engine = make_engine(
        model.module,
        audio_processor=model.processor,
        vocab_size=vocab_size,
        **{**limits, **settings},
    )
    assert engine.model.info.audio is not None, engine.model.info.audio_refusal
    return engine


def check(model: AudioModel, result: Any, prompt: Prompt) -> None:
    token_ids, logprobs = model.reference(prompt, NUM_OUTPUT)
    assert result.error is None
    assert result.token_ids == token_ids
    assert [x.logprob for x in result.logprobs] == pytest.approx(logprobs, abs=2e-4)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_answers_equal_plain_transformers(
    models: Callable[[str], AudioModel], name: str, way: str
) -> None:
    model, settings = models(name), dict(WAYS[way])
    requests = prompts(model)
    if way == "preempted":  # room for the longest prompt, but not for all
        settings["num_blocks"] = max(len(p.token_ids) for p in requests.values()) // 4 + 5
    engine = engine_of(model, **settings)
    if way == "preempted":  # others of a better priority come while it is computed
        long = requests.pop("two")
        add(engine, "long", long.token_ids, greedy(NUM_OUTPUT), media=long.media, priority=1)
        assert not engine.step()
    for key, prompt in requests.items():
        add(engine, key, prompt.token_ids, greedy(NUM_OUTPUT), media=prompt.media)
    results = run(engine)
    for key, prompt in requests.items():
        check(model, results[key, 0], prompt)
    if way == "preempted":
        check(model, results["long", 0], long)
        assert engine.stats().num_preemptions > 0
        return
    turn = model.prompt("Listen: # What is it? And #", CLIPS[0], CLIPS[1])
    add(engine, "turn", turn.token_ids, greedy(NUM_OUTPUT, n=2), media=turn.media)
    results = run(engine)
    assert results["turn", 0].num_cached_tokens >= turn.media[0].num_tokens
    for i in range(2):
        check(model, results["turn", i], turn)


def test_the_prefix_cache_keeps_clips_apart(models: Callable[[str], AudioModel]) -> None:
    model = models("qwen2_audio")
    engine = engine_of(model)
    for key, seed in (("first", 7), ("other", 8)):
        prompt = model.prompt("# What?", sound(1.2, seed))
        add(engine, key, prompt.token_ids, greedy(NUM_OUTPUT), media=prompt.media)
        result = run(engine)[key, 0]
        check(model, result, prompt)
        assert result.num_cached_tokens < 4
    stats = engine.stats()
    assert (stats.num_encoded_audio, stats.num_audio_cache_hits) == (2, 0)
    assert (stats.num_encoded_images, stats.image_encode_seconds) == (0, 0.0)
    assert stats.audio_encode_seconds > 0


def test_an_image_and_a_clip_in_one_prompt(models: Callable[[str], AudioModel]) -> None:
    model = models("gemma4")
    image_id = model.module.config.image_token_id
    eyes = HFProcessor(model.folder, "image", image_id)
    picture, clip = noise((90, 130)), CLIPS[0]
    prompt = model.prompt_with_image("Look: @ Listen: # What?", eyes, picture, clip)
    engine = engine_of(model, media=True)
    assert engine.model.info.media_token_ids == {"image": image_id, "audio": model.token_id}
    text = model.prompt("No sound at all")
    add(engine, "both", prompt.token_ids, greedy(NUM_OUTPUT), media=prompt.media)
    add(engine, "text", text.token_ids, greedy(NUM_OUTPUT))
    results = run(engine)
    check(model, results["both", 0], prompt)
    check(model, results["text", 0], text)
    stats = engine.stats()
    assert (stats.num_encoded_images, stats.num_encoded_audio) == (1, 1)
