"""Decisions that depend on what a CUDA device reports, with reports made up by the test."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from stonechat_models.backends.transformers.attention.choose import choose_attention
from stonechat_models.backends.transformers.cuda.memory import (
    GRAPH_BYTES,
    step_memory,
    tower_memory,
)
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.media.hf_processor import HFProcessor, large_image
from stonechat_models.sampling.sampler import Sampler
from stonechat_models.types import MAX_TOP_LOGPROBS
from tests.models.device_lengths import DeviceLengths
from tests.models.engines import CPU, make_engine
from tests.models.tiny_loras import tiny_lora
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.models.vision_models import save_vision_model

CUDA = torch.device("cuda", 0)


@pytest.fixture
def capability(monkeypatch):
    def set_to(major, minor):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))

    class Properties:
        multi_processor_count = 132
        major, minor = 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    return set_to


def test_attention_is_chosen_by_capability(capability):
    capability(9, 0)
    assert choose_attention("auto", CUDA).name == "triton"
    assert choose_attention("sdpa", CUDA).name == "sdpa"
    assert choose_attention("batched", CUDA).name == "batched"
    capability(7, 5)
    assert choose_attention("auto", CUDA).name == "batched"
    with pytest.raises(ModelLoadError, match=r"capability 7\.5; the Triton kernels need 8\.0"):
        choose_attention("triton", CUDA)


def test_attention_without_cuda():
    assert choose_attention("auto", CPU).name == "batched"
    with pytest.raises(ModelLoadError, match="needs a CUDA device"):
        choose_attention("triton", CPU)
    with pytest.raises(ModelLoadError, match="try auto, triton"):
        choose_attention("flash", CPU)


def test_attention_without_triton(capability, monkeypatch):
    capability(9, 0)
    monkeypatch.setattr(
        "stonechat_models.backends.transformers.attention.choose.find_spec", lambda _: None
    )
    assert choose_attention("auto", CUDA).name == "batched"


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 << 20, 9 << 20))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 4500)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def measured(model, sampler=None, *, graphs=False):
    limits = {"max_model_len": 128, "max_batch_tokens": 50, "max_num_seqs": 7, "block_size": 4}
    model.info = replace(model.info, **limits)
    return step_memory(model, sampler or Sampler(VOCAB_SIZE, CPU), CPU, graphs=graphs)


def test_a_step_is_measured_by_running_it(memory):
    model = make_engine(tiny_model("llama")).model
    sizes, edited = [], []
    sampler = Sampler(VOCAB_SIZE, CPU)

    def counting_sampler(logits, states):
        sizes.append(len(logits))
        edited.extend(s.needs_edits and s.params.top_logprobs == MAX_TOP_LOGPROBS for s in states)
        return sampler(logits, states)

    num_rows = []
    forward = model.forward
    model.forward = lambda batch: num_rows.append(len(batch.logits_index)) or forward(batch)
    assert measured(model, counting_sampler) == 3500
    assert sizes == [7]
    assert edited == [True] * 7  # such rows take the sampler most memory
    assert num_rows == [50]  # all but 7 are for log-probabilities of prompts
    assert model.info.num_blocks == 1  # the blocks of the run are freed


@pytest.mark.parametrize("family", ["lfm2", "mamba"])
def test_a_step_of_a_model_with_a_state_is_measured_with_many_rows(memory, monkeypatch, family):
    monkeypatch.setattr("stonechat_models.model_info.MAX_PROMPT_LOGITS_BYTES", 4 * VOCAB_SIZE * 20)
    model = make_engine(tiny_model(family)).model
    shapes = []
    forward = model.forward

    def recording_forward(batch):
        logits = forward(batch)
        shapes.append(logits.shape)
        return logits

    model.forward = recording_forward
    measured(model)
    assert shapes == [(21, VOCAB_SIZE)]


def test_the_vision_tower_is_measured_with_a_large_image(memory, monkeypatch, tmp_path):
    folder = save_vision_model(tmp_path / "model", "qwen2_5_vl")
    monkeypatch.setattr("stonechat_models.media.hf_processor.LARGE_SIZE", (280, 140))
    image = large_image(HFProcessor(folder, "image", 271))
    assert image.num_tokens == 10 * 5
    encoded = []
    model = SimpleNamespace(encode_media=encoded.append)
    assert tower_memory(model, image, CPU) == 3500
    assert encoded == [image]

    def no_memory(_):
        raise torch.OutOfMemoryError

    model.encode_media = no_memory
    with pytest.raises(UnsupportedModelError, match=r"more than the 5\.2 MB that are free on cpu"):
        tower_memory(model, image, CPU)


def test_the_measured_step_has_an_adapter_whose_rows_do_not_lie_together(memory, tmp_path):
    module = tiny_model("llama")
    lora = tiny_lora(tmp_path / "a", module, ["model.layers.0.mlp.up_proj", "lm_head"])
    model = make_engine(module, adapters=[lora.adapter]).model
    groups = []
    forward = model.forward

    def recording_forward(batch):
        logits = forward(batch)
        rows = model.adapter_rows
        groups.append([len(part) for group in (rows.tokens, rows.head) for _, part in group.groups])
        return logits

    model.forward = recording_forward
    measured(model)
    assert groups == [[43, 43]], "the middle sequence of 7 has 7 of the 50 tokens"


def test_memory_of_graphs_is_included(memory):
    model = make_engine(tiny_model("llama")).model
    step_sizes = []
    forward = model.forward
    model.forward = lambda batch: step_sizes.append(batch.num_tokens) or forward(batch)
    num_bytes = measured(model, graphs=True)
    assert step_sizes == [50, 7]  # the largest prefill, and the largest decode step
    logits = 4 * VOCAB_SIZE * 7
    buffers = 7 * (3 * 8 + 4 + 32 * 4 + 3 * 8) + 2 * 8 * 4
    assert num_bytes == 3500 + 3500 + logits + buffers + 4 * GRAPH_BYTES


def test_memory_of_graphs_of_mixed_steps_is_included(memory):
    model = make_engine(tiny_model("llama"), DeviceLengths()).model
    shapes = []
    forward = model.forward
    model.forward = lambda batch: (
        shapes.append((batch.num_tokens, len(batch.logits_index))) or forward(batch)
    )
    num_bytes = measured(model, graphs=True)
    assert shapes == [(50, 50), (50, 50)]  # the largest prefill, and the largest graph
    buffers = 50 * 3 * 8 + 8 * (4 + 32 * 4 + 2 * 8) + 2 * 9 * 4 + 50 * 8
    assert num_bytes == 3500 + 3500 + 4 * VOCAB_SIZE * 50 + buffers + 6 * GRAPH_BYTES


def test_a_step_that_does_not_fit_is_refused_with_the_numbers(memory):
    model = make_engine(tiny_model("llama")).model

    def forward(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.forward = forward
    with pytest.raises(ModelLoadError, match=r"50 tokens and 7 sequences .* 5\.2 MB"):
        measured(model)
