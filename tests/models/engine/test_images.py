"""Steps with images: equal to plain `transformers`, however they are split, shared or cached."""

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, LlamaForCausalLM

from stonechat_models.engine.batch import place_of
from stonechat_models.engine.prompts.media import PromptMedia, check_media, text_tokens
from stonechat_models.errors import InvalidParamsError
from stonechat_models.media.features import FeatureStore, MediaFeatures
from stonechat_models.model_info import ImageInfo
from stonechat_models.types import GenerateRequest, MediaInput, MediaTensor, SamplingParams
from tests.models.engines import add, greedy, make_engine, model_info, run
from tests.models.tiny_loras import tiny_lora
from tests.models.tiny_models import COMMON

IMAGE_ID = 205
NUM_TOKENS = 4
"""Of an image."""
NUM_OUTPUT = 6


VISION = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
}


@pytest.fixture(scope="module")
def module():
    vision = {"model_type": "clip_vision_model", **VISION}
    return build("llava", vision, {"model_type": "llama", **COMMON})


@pytest.fixture(scope="module")
def gemma():
    """A model whose images attend in both directions."""
    vision = {"vision_use_head": False, **VISION}
    text = {"head_dim": 16, "sliding_window": 6, **COMMON, "num_hidden_layers": 3}
    text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return build("gemma3", vision, text, mm_tokens_per_image=NUM_TOKENS)


def build(model_type, vision, text, **settings):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](
        vision_config=vision, text_config=text, image_token_id=IMAGE_ID, **settings
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    for weight in model.parameters():  # embeddings that differ, so that all images count
        weight.data *= 3 if weight.dim() > 1 else 1
    model.get_output_embeddings().weight.data[IMAGE_ID] = 0
    return model.float().eval().requires_grad_(False)


def pixels(seed):
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def image(seed, start) -> MediaInput:
    data = pixels(seed).numpy()
    tensor = MediaTensor("float32", data.shape, data.tobytes())
    return MediaInput(bytes([seed]) * 16, ((start, NUM_TOKENS),), {"pixel_values": tensor})


def prompt_of(*seeds, num_text=5, first=3, between=None):
    """Return a prompt with images in it, each after and before some text, and the images.

    `between`: tokens of the text between two images, if it has another length.
    """
    token_ids, images = [*range(first, first + num_text)], []
    for i, seed in enumerate(seeds):
        images.append(image(seed, len(token_ids)))
        is_last = i == len(seeds) - 1 or between is None
        text = range(first + 20, first + 20 + (num_text if is_last else between))
        token_ids += [IMAGE_ID] * NUM_TOKENS + [*text]
    return token_ids, tuple(images)


@torch.inference_mode()
def reference(module, token_ids, seeds, num_tokens=NUM_OUTPUT):
    """Return greedy tokens and their log-probabilities: one pass of the model's own for each."""
    implementation = module.config._attn_implementation
    module.set_attn_implementation("eager")
    ids, logprobs = list(token_ids), []
    pictures = {"pixel_values": torch.cat([pixels(seed) for seed in seeds])} if seeds else {}
    takes_types = "token_type_ids" in inspect.signature(module.forward).parameters
    for _ in range(num_tokens):
        inputs = torch.tensor([ids])
        types = {"token_type_ids": (inputs == IMAGE_ID).long()} if takes_types else {}
        logits = module(input_ids=inputs, use_cache=False, **types, **pictures).logits[0, -1]
        row = torch.log_softmax(logits.double(), dim=-1)
        ids.append(int(row.argmax()))
        logprobs.append(float(row.max()))
    module.set_attn_implementation(implementation)
    return ids[len(token_ids) :], logprobs


def check(module, result, token_ids, seeds):
    expected, logprobs = reference(module, token_ids, seeds, len(result.token_ids))
    assert result.error is None
    assert result.token_ids == expected
    assert [x.logprob for x in result.logprobs] == pytest.approx(logprobs, abs=1e-5)


SETTINGS = {
    "whole": {},
    "chunks that end in images": {"max_batch_tokens": 3},
    "overlapped": {"overlap": True},
    "without a cache": {"media_cache_bytes": 0, "max_batch_tokens": 7},
    "padded": {"row_multiple": 8},
    "prompt lookup": {"prompt_lookup": "on"},
}
PROMPTS = {"one": (1,), "none": (), "two": (2, 1), "eight": (3, 4, 5, 6, 7, 8, 1, 2), "again": (1,)}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_requests_with_and_without_images_equal_plain_transformers(module, settings):
    engine = make_engine(module, media=True, **settings)
    prompts = {name: prompt_of(*seeds, num_text=2) for name, seeds in PROMPTS.items()}
    for name, (token_ids, images) in prompts.items():
        add(engine, name, token_ids, greedy(NUM_OUTPUT), media=images)
    results = run(engine)
    for name, (token_ids, _) in prompts.items():
        check(module, results[name, 0], token_ids, PROMPTS[name])
    assert engine.media.num_live == 0


def test_text_beside_a_draft_model_is_drafted_and_images_are_not(module):
    draft = module.model.language_model, module.lm_head
    draft_module = LlamaForCausalLM(module.config.text_config).eval()
    draft_module.model, draft_module.lm_head = copy.deepcopy(draft)
    engine = make_engine(module, media=True, draft_module=draft_module)
    token_ids, images = prompt_of(1)
    add(engine, "image", token_ids, greedy(24), media=images)
    check(module, run(engine)["image", 0], token_ids, (1,))
    assert engine.stats().num_model_drafted_tokens == 0
    add(engine, "image", token_ids, greedy(24), media=images)
    add(engine, "text", [3, 4, 5, 6], greedy(24))
    results = run(engine)
    check(module, results["image", 0], token_ids, (1,))
    check(module, results["text", 0], [3, 4, 5, 6], ())
    assert engine.stats().num_model_drafted_tokens > 0


def test_adapters_change_the_language_model_and_not_the_images(module, tmp_path):
    decoder = "model.language_model.layers"
    layers = [f"{decoder}.0.self_attn.q_proj", f"{decoder}.1.mlp.up_proj"]
    lora = tiny_lora(tmp_path / "lora", module, layers)
    engine = make_engine(copy.deepcopy(module), media=True, adapters=[lora.adapter])
    token_ids, images = prompt_of(1, 2)
    add(engine, "base", token_ids, greedy(NUM_OUTPUT), media=images)
    add(engine, "lora", token_ids, greedy(NUM_OUTPUT), media=images, adapter="lora")
    results = run(engine)
    check(module, results["base", 0], token_ids, (1, 2))
    check(lora.merged, results["lora", 0], token_ids, (1, 2))
    assert results["base", 0].logprobs != results["lora", 0].logprobs
    assert engine.stats().num_encoded_images == 2


@pytest.mark.parametrize("overlap", [False, True])
def test_others_wait_for_one_image_at_a_time(module, overlap):
    engine = make_engine(module, media=True, overlap=overlap, max_batch_tokens=128)
    prompts = {str(seeds): (seeds, *prompt_of(*seeds, first=seeds[0])) for seeds in ((3, 4), (5,))}
    prompts["again"] = ((5,), *prompt_of(5, first=9))
    for name, (_, token_ids, images) in prompts.items():
        add(engine, name, token_ids, greedy(NUM_OUTPUT), media=images)
    add(engine, "text", [3, 4, 5], greedy(NUM_OUTPUT))
    counts, results = [], {}
    while engine.has_work:
        for output in engine.step():
            results.setdefault(output.request_id, []).extend(output.token_ids)
        engine.scheduler.check_integrity()
        counts.append(engine.stats().num_encoded_images)
    assert counts[:3] == [1, 2, 3]
    assert len(counts) <= 3 + NUM_OUTPUT + 2
    assert results["text"] == reference(module, [3, 4, 5], ())[0]
    for name, (seeds, token_ids, _) in prompts.items():
        assert results[name] == reference(module, token_ids, seeds)[0]


def test_steps_of_text_alone_never_come_to_images(module):
    engine = make_engine(module, media=True)
    engine.media.prepare = engine.media.add_to = None
    add(engine, "text", [3, 4, 5], greedy(NUM_OUTPUT))
    check(module, run(engine)["text", 0], [3, 4, 5], ())


def test_the_times_of_a_device_are_those_of_its_events(monkeypatch):
    class Event:
        is_done = False

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream"

        def query(self):
            return self.is_done

        def elapsed_time(self, end):
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    place = place_of(torch.device("cuda"))
    start, end = place.now(), place.now()
    assert place.seconds(start, end) is None
    end.is_done = True
    assert place.seconds(start, end) == 0.25


def test_preempted_requests_are_computed_again_with_their_images(module):
    engine = make_engine(module, media=True, num_blocks=16, prefix_caching=False)
    seeds = {"a": (1, 2), "b": (3,), "c": (2,), "d": ()}
    prompts = {name: prompt_of(*seeds[name], first=3 + i) for i, name in enumerate(seeds)}
    for name, (token_ids, images) in prompts.items():
        add(engine, name, token_ids, greedy(16), media=images)
    results = run(engine)
    assert engine.stats().num_preemptions > 0
    for name, (token_ids, _) in prompts.items():
        check(module, results[name, 0], token_ids, seeds[name])


@pytest.mark.parametrize("max_batch_tokens", [64, 3])
def test_an_image_is_encoded_once_for_all_choices_and_later_requests(module, max_batch_tokens):
    engine = make_engine(module, media=True, max_batch_tokens=max_batch_tokens)
    token_ids, images = prompt_of(1, 2)
    add(engine, "first", token_ids, greedy(NUM_OUTPUT, n=3), media=images)
    results = run(engine)
    for i in range(3):
        check(module, results["first", i], token_ids, (1, 2))
    other_ids, other_images = prompt_of(2, first=40)
    add(engine, "other", other_ids, greedy(NUM_OUTPUT), media=other_images)
    check(module, run(engine)["other", 0], other_ids, (2,))
    stats = engine.stats()
    assert (stats.num_encoded_images, stats.num_image_cache_hits) == (2, 1)
    assert stats.image_encode_seconds > 0


def test_the_prefix_cache_tells_images_apart_and_may_end_inside_one(module):
    engine = make_engine(module, media=True)
    first_ids, first_images = prompt_of(1, 2, num_text=6)  # images at 6 and 16, blocks of 4
    add(engine, "first", first_ids, greedy(NUM_OUTPUT), media=first_images)
    run(engine)
    for seeds, num_cached in {(1, 2): 24, (1, 3): 16, (2, 1): 4}.items():
        token_ids, images = prompt_of(*seeds, num_text=6)
        assert token_ids == first_ids
        add(engine, "next", token_ids, greedy(NUM_OUTPUT), media=images)
        result = run(engine)["next", 0]
        assert result.num_cached_tokens == num_cached
        check(module, result, token_ids, seeds)
    cut_ids = first_ids[:8] + [3] * 4  # ends with a part of the first image
    add(engine, "text", cut_ids, greedy(1))  # the same ids without an image share only the text
    assert run(engine)["text", 0].num_cached_tokens == 4


def test_a_request_whose_image_cannot_be_encoded_ends_alone(module):
    engine = make_engine(module, media=True)
    good_ids, good_images = prompt_of(1)
    token_ids, (image,) = prompt_of(9)
    shape = MediaTensor("float32", (1, 3, 4, 8), image.tensors["pixel_values"].data[: 4 * 96])
    broken = (replace_tensors(image, {"pixel_values": shape}),)
    add(engine, "good", good_ids, greedy(NUM_OUTPUT), media=good_images)
    add(engine, "broken", token_ids, greedy(NUM_OUTPUT, n=2), media=broken)
    results = run(engine)
    check(module, results["good", 0], good_ids, (1,))
    for i in range(2):
        assert results["broken", i].finish_reason == "error"
        assert (
            results["broken", i].error
            == "an image, a video or audio of this request cannot be encoded"
        )
    assert engine.stats().num_failed_steps == 0
    assert engine.media.num_live == 0
    add(engine, "good", good_ids, greedy(NUM_OUTPUT), media=good_images)
    check(module, run(engine)["good", 0], good_ids, (1,))


def test_features_are_held_only_while_a_sequence_needs_them(module):
    engine = make_engine(module, media=True, media_cache_bytes=0, max_batch_tokens=5)
    token_ids, images = prompt_of(1, 2, 3)
    add(engine, "a", token_ids, greedy(NUM_OUTPUT), media=images)
    held = engine._requests["a"].media.features
    counts, results = [], []
    while engine.has_work:
        results += [token_id for output in engine.step() for token_id in output.token_ids]
        counts.append(len(held))
    assert counts == [0, 1, 1, 1, 1, 1, *[0] * NUM_OUTPUT]
    assert results == reference(module, token_ids, (1, 2, 3))[0]
    assert engine.stats().num_encoded_images == 3


@pytest.mark.parametrize("overlap", [False, True])
def test_choices_share_an_image_that_ends_the_prompt(module, overlap):
    engine = make_engine(module, media=True, media_cache_bytes=0, overlap=overlap)
    token_ids = [3, 4, 5, *[IMAGE_ID] * NUM_TOKENS]
    params = greedy(NUM_OUTPUT, n=3, ignore_eos=True)
    add(engine, "a", token_ids, params, media=(image(1, 3),))
    held = engine._requests["a"].media.features
    results = run(engine)
    for i in range(3):
        check(module, results["a", i], token_ids, (1,))
    assert engine.stats().num_encoded_images == 1
    assert not held


def test_preempted_requests_hold_no_features(module):
    engine = make_engine(module, media=True, num_blocks=10, max_batch_tokens=6)
    prompts = {"worse": prompt_of(1), "better": prompt_of(2, num_text=9)}
    params = greedy(NUM_OUTPUT)
    add(engine, "worse", prompts["worse"][0], params, media=prompts["worse"][1], priority=1)
    held = engine._requests["worse"].media.features
    assert not engine.step()
    assert held
    add(engine, "better", prompts["better"][0], params, media=prompts["better"][1])
    engine.step()
    assert engine.stats().num_preemptions == 1
    assert not held
    results = run(engine)
    check(module, results["worse", 0], prompts["worse"][0], (1,))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_runs_again_has_its_images_encoded_again(module, overlap):
    engine = make_engine(module, media=True, media_cache_bytes=0, overlap=overlap)
    token_ids, images = prompt_of(1)
    add(engine, "a", token_ids, greedy(NUM_OUTPUT), media=images)
    add(engine, "b", [3, 4, 5], greedy(NUM_OUTPUT))
    forward = engine.model.forward
    engine.media.add_to = in_step(engine, engine.media.add_to)

    def fail(batch):
        engine.model.forward = forward
        engine._requests["a"].media.features.clear()  # as a later step does that is in flight
        raise RuntimeError("once")

    engine.model.forward = fail
    results = run(engine)
    check(module, results["a", 0], token_ids, (1,))
    check(module, results["b", 0], [3, 4, 5], ())
    assert (engine.stats().num_failed_steps, engine.stats().num_encoded_images) == (1, 2)


def in_step(engine, add_to):
    """Nothing is encoded while the images of a step are put together."""

    def checked(batch, items):
        num_encoded = engine.stats().num_encoded_images
        add_to(batch, items)
        assert engine.stats().num_encoded_images == num_encoded

    return checked


@pytest.mark.parametrize("num_tokens", [3, 6])
def test_features_of_another_length_end_the_request(module, num_tokens):
    engine = make_engine(module, media=True)
    token_ids, images = prompt_of(1)
    add(engine, "a", token_ids, greedy(2), media=images)
    run(engine)
    token_ids = [*range(30, 35), *[IMAGE_ID] * num_tokens, 50]
    other = MediaInput(images[0].content_hash, ((5, num_tokens),), images[0].tensors)
    add(engine, "b", token_ids, greedy(2), media=(other,))
    assert (
        run(engine)["b", 0].error == "an image, a video or audio of this request cannot be encoded"
    )
    assert engine.stats().num_failed_steps == 0


def replace_tensors(image, tensors):
    return MediaInput(image.content_hash, image.places, tensors)


def test_log_probabilities_of_a_prompt_with_an_image(module):
    engine = make_engine(module, media=True, max_batch_tokens=5)
    token_ids, images = prompt_of(1)
    add(engine, "a", token_ids, greedy(1, prompt_logprobs=0), media=images)
    entries = run(engine)["a", 0].prompt_logprobs
    module.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = module(input_ids=torch.tensor([token_ids]), pixel_values=pixels(1)).logits[0]
    rows = torch.log_softmax(logits[:-1].double(), dim=-1)
    expected = rows[torch.arange(len(rows)), torch.tensor(token_ids[1:])]
    assert [e.logprob for e in entries] == pytest.approx(expected.tolist(), abs=1e-5)


BIDIRECTIONAL = {
    "whole": {},
    "chunks": {"max_batch_tokens": 10, "max_num_seqs": 2},
    "overlapped": {"overlap": True, "max_batch_tokens": 11, "max_num_seqs": 3},
    "preempted": {"num_blocks": 14, "prefix_caching": False},
}


@pytest.mark.parametrize("settings", BIDIRECTIONAL.values(), ids=BIDIRECTIONAL)
def test_images_that_attend_in_both_directions_are_computed_whole(gemma, settings):
    engine = make_engine(gemma, media=True, **settings)
    assert engine.model.info.images.bidirectional
    cases = {"one": (1,), "text": (), "two": (2, 1), "touching": (3, 1), "three": (1, 2, 3)}
    prompts = {
        name: prompt_of(*seeds, first=3 + i, between=0 if name == "touching" else None)
        for i, (name, seeds) in enumerate(cases.items())
    }
    num_output = 14 if "num_blocks" in settings else NUM_OUTPUT
    for name, (token_ids, images) in prompts.items():
        add(engine, name, token_ids, greedy(num_output), media=images)
    results = run(engine)
    for name, (token_ids, _) in prompts.items():
        check(gemma, results[name, 0], token_ids, cases[name])
    assert bool(engine.stats().num_preemptions) is ("num_blocks" in settings)


def test_a_run_of_images_is_cached_under_the_content_of_all(gemma):
    engine = make_engine(gemma, media=True)
    first_ids, first_images = prompt_of(1, 2, num_text=6, between=0)  # a run from 6 to 14
    add(engine, "first", first_ids, greedy(NUM_OUTPUT), media=first_images)
    run(engine)
    for seeds, num_cached in {(1, 2): 16, (1, 3): 4}.items():
        token_ids, images = prompt_of(*seeds, num_text=6, between=0)
        add(engine, "next", token_ids, greedy(NUM_OUTPUT), media=images)
        result = run(engine)["next", 0]
        assert result.num_cached_tokens == num_cached
        check(gemma, result, token_ids, seeds)
    cut_ids, cut_images = first_ids[:15], first_images  # a cached block ends inside the run
    add(engine, "cut", cut_ids, greedy(NUM_OUTPUT), media=cut_images)
    result = run(engine)["cut", 0]
    assert result.num_cached_tokens == 12
    check(gemma, result, cut_ids, (1, 2))


def test_an_image_that_fits_in_no_step_is_refused():
    request = _request(*prompt_of(1, 2, between=0))
    info = replace(_takes_images(), images=ImageInfo(token_id=IMAGE_ID, bidirectional=True))
    check_media(request, replace(info, max_batch_tokens=12, max_num_seqs=4))
    with pytest.raises(InvalidParamsError, match="needs --max-batch-tokens 13"):
        check_media(request, replace(info, max_batch_tokens=12, max_num_seqs=5))
    with_logprobs = replace(request, params=SamplingParams(prompt_logprobs=0))
    check_media(with_logprobs, info)
    with pytest.raises(InvalidParamsError, match="images of at most 6 tokens, not 8"):
        check_media(with_logprobs, replace(info, vocab_size=10_000_000))


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (((2, 4),), "not placeholders"),
        (((5, 4), (9, 1)), "not placeholders"),
        (((5, 4), (8, 1)), "not within the prompt"),
        (((12, 4),), "not within the prompt"),
        (((5, 0),), "not within the prompt"),
        ((), "no placeholder"),
    ],
)
def test_images_in_wrong_places_are_refused(places, reason):
    token_ids, (image,) = prompt_of(1)
    images = (MediaInput(image.content_hash, places, image.tensors),)
    with pytest.raises(InvalidParamsError, match=reason):
        check_media(_request(token_ids, images), _takes_images())


def test_grids_that_touch_are_refused():
    info = replace(_takes_images(), images=ImageInfo(token_id=IMAGE_ID, has_grid_positions=True))
    check_media(_request(*prompt_of(1, 2, between=1)), info)
    with pytest.raises(InvalidParamsError, match="without the text"):
        check_media(_request(*prompt_of(1, 2, between=0)), info)


def test_a_placeholder_in_a_text_keeps_its_embedding_beside_images(module):
    text = [3, IMAGE_ID, 5, IMAGE_ID, 7]
    engine = make_engine(module, media=True)
    token_ids, _ = prompt_of(1)
    add(engine, "image", [IMAGE_ID, *token_ids], greedy(NUM_OUTPUT), media=(image(1, 6),))
    add(engine, "text", text, greedy(NUM_OUTPUT))
    results = run(engine)
    check(module, results["text", 0], text, ())
    add(engine, "alone", [IMAGE_ID, *token_ids], greedy(NUM_OUTPUT), media=(image(1, 6),))
    alone = run(engine)["alone", 0]
    assert alone.token_ids == results["image", 0].token_ids


def test_a_model_without_images_refuses_them_with_its_reason():
    request = _request(*prompt_of(1))
    check_media(request, _takes_images())
    with pytest.raises(InvalidParamsError, match="tiny takes no images: it is not a model for"):
        check_media(request, model_info())
    with pytest.raises(InvalidParamsError, match="tiny takes no images: the reason"):
        check_media(request, model_info(image_refusal="the reason"))


def _request(token_ids, images):
    return GenerateRequest(
        request_id="a", prompt_token_ids=token_ids, params=SamplingParams(), media=images
    )


def _takes_images():
    return replace(model_info(), images=ImageInfo(token_id=IMAGE_ID))


def test_the_text_of_a_prompt_is_what_is_in_no_image():
    token_ids, images = prompt_of(1, 2)
    text = text_tokens(_request(token_ids, images))
    assert text == [x for x in token_ids if x != IMAGE_ID]


def test_places_may_be_several_runs_of_one_image():
    images = PromptMedia([MediaInput(b"a", ((2, 3), (7, 2)), {}), MediaInput(b"b", ((5, 1),), {})])
    assert [tuple(p) for p in images.places_in(0, 99)] == [(2, 3, 0, 0), (5, 1, 1, 0), (7, 2, 0, 3)]
    assert [tuple(p) for p in images.places_in(4, 8)] == [(4, 1, 0, 2), (5, 1, 1, 0), (7, 1, 0, 3)]
    assert [tuple(p) for p in images.places_in(6, 7)] == []
    assert images.end == 9
    contents = {images.content_of(start, start + 4) for start in range(4)}
    assert len(contents) == 4


def test_the_store_drops_what_was_used_longest_ago_but_finds_what_is_held():
    store = FeatureStore(2 * 16)
    held = {name: MediaFeatures(torch.zeros(1, 4)) for name in (b"a", b"b", b"c")}
    store.insert(b"a", held[b"a"])
    store.insert(b"b", held[b"b"])
    assert store.find(b"a") is held[b"a"]
    store.insert(b"c", held[b"c"])
    assert store.num_bytes == 32
    assert store.find(b"b") is held[b"b"]  # someone holds it, so it is kept again instead of a
    held.clear()
    assert store.find(b"a") is None
    assert store.find(b"b") is not None
    store.insert(b"large", MediaFeatures(torch.zeros(9, 4)))
    assert store.find(b"large") is None
    assert store.num_bytes == 32
