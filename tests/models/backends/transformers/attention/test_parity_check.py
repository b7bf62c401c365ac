"""The parity check of attention backends at start, with backends that compute wrong results."""

from dataclasses import replace

import pytest
import torch

from stonechat_models.backends.transformers.attention import choose
from stonechat_models.backends.transformers.attention.backend import AttentionSpec
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.interface import ProbeContext
from stonechat_models.backends.transformers.attention.parity_check import (
    MAX_WINDOW,
    LayerKind,
    ParityCheck,
)
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from stonechat_models.errors import EngineError, ModelLoadError

CPU = torch.device("cpu")
KINDS = [
    LayerKind(8, 2, 64, 64, AttentionSpec(0.125)),
    LayerKind(8, 2, 64, 64, AttentionSpec(0.125, MAX_WINDOW)),
    LayerKind(4, 1, 32, 16, AttentionSpec(0.2, 4096, 30.0, torch.zeros(4))),
    LayerKind(4, 2, 32, 32, AttentionSpec(0.2, chunk_size=8192)),
]


def parity_check(dtype=torch.float32, kinds=KINDS, kv_dtype=None):
    return ParityCheck(CPU, dtype, kv_dtype or dtype, 16, kinds)


class FaultyBackend(SdpaBackend):
    """The reference backend with one fault."""

    def __init__(self, change_spec=lambda spec: spec, change_output=lambda batch, output: output):
        self.change_spec = change_spec
        self.change_output = change_output

    def attend(self, query, kv, batch, spec):
        output = super().attend(query, kv, batch, self.change_spec(spec))
        return self.change_output(batch, output)


def is_prefill(batch):
    return batch.num_tokens > batch.num_seqs


def one_token_zeroed(batch, output):
    if is_prefill(batch):
        output[75] = 0  # in a chunk after a cached prefix
    return output


FAULTY_BACKENDS = {
    "no window": FaultyBackend(lambda spec: replace(spec, sliding_window=None)),
    "window off by one": FaultyBackend(
        lambda spec: spec if spec.sliding_window is None else replace(spec, sliding_window=99)
    ),
    "no chunks": FaultyBackend(lambda spec: replace(spec, chunk_size=None)),
    "chunk off by one": FaultyBackend(
        lambda spec: spec if spec.chunk_size is None else replace(spec, chunk_size=99)
    ),
    "no soft cap": FaultyBackend(lambda spec: replace(spec, softcap=None)),
    "no sinks": FaultyBackend(lambda spec: replace(spec, sinks=None)),
    "scaling": FaultyBackend(lambda spec: replace(spec, scaling=spec.scaling * 1.5)),
    "heads swapped": FaultyBackend(change_output=lambda batch, output: output.flip(1)),
    "one token": FaultyBackend(change_output=one_token_zeroed),
    "NaN": FaultyBackend(change_output=lambda batch, output: output.log()),
    "shape": FaultyBackend(change_output=lambda batch, output: output[:, :1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", [SdpaBackend(), BatchedBackend()], ids=lambda b: b.name)
def test_right_backends_pass(backend, dtype):
    parity_check(dtype).run(backend)


def test_right_backends_pass_with_a_float8_cache():
    parity_check(torch.bfloat16, kv_dtype=torch.float8_e4m3fn).run(BatchedBackend())


class CausalBackend(SdpaBackend):
    """It does not know that tokens of images see those after them."""

    def attend(self, query, kv, batch, spec):
        return super().attend(query, kv, batch.without_visible_ends(), spec)


def test_attention_in_both_directions_is_checked_for_models_that_have_it():
    check = replace(parity_check(), has_visible_ends=True)
    for backend in (SdpaBackend(), BatchedBackend()):
        check.run(backend)
    parity_check().run(CausalBackend())
    with pytest.raises(EngineError, match="prefill with images"):
        check.run(CausalBackend())


@pytest.mark.parametrize("backend", FAULTY_BACKENDS.values(), ids=FAULTY_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_results_are_found(backend, dtype):
    with pytest.raises(EngineError, match=r"is off by [\d.inf]+ of a token's largest number"):
        parity_check(dtype).run(backend)


def test_triton_passes_in_the_interpreter():
    pytest.importorskip("triton")
    from stonechat_models.backends.transformers.attention.triton_backend import TritonBackend

    parity_check(torch.bfloat16, KINDS[-2:]).run(TritonBackend(16))


def test_every_kind_of_a_models_layers_is_checked():
    probe = ProbeContext([0, 3])
    plain = AttentionSpec(0.1)
    specs = [plain, plain, replace(plain, sliding_window=8), plain]
    for layer, spec in enumerate(specs):
        tensors = (torch.randn(3, heads, 8) for heads in (4, 2, 2))
        probe.attend(layer, *tensors, spec)
    assert [kind.spec.sliding_window for kind in probe.kinds] == [None, 8]
    assert {(k.num_heads, k.num_kv_heads, k.key_size, k.value_size) for k in probe.kinds} == {
        (4, 2, 8, 8)
    }


class RaisingBackend(SdpaBackend):
    def attend(self, *args):
        raise RuntimeError("no kernel image is available\nand pages of more")


@pytest.fixture
def fake_backends(monkeypatch):
    """The backends that `choose_attention` builds, by name. Parity checks run on the CPU."""
    backends = {"triton": FaultyBackend(), "batched": FaultyBackend(), "sdpa": FaultyBackend()}
    monkeypatch.setattr(choose, "_build", lambda name, device: backends[name])
    monkeypatch.setattr(choose, "_why_not", lambda name, device: None)
    return backends


CUDA = torch.device("cuda", 0)


def test_auto_falls_back_and_reports_why(fake_backends):
    lines = []
    fake_backends["triton"] = FAULTY_BACKENDS["heads swapped"]
    chosen = choose.choose_attention("auto", CUDA, parity_check(), lines.append)
    assert chosen is fake_backends["batched"]
    (line,) = lines
    assert line.startswith(
        "not using triton attention: decode of 8 query and 2 KV heads of size 64"
    )
    fake_backends["batched"] = RaisingBackend()
    assert (
        choose.choose_attention("auto", CUDA, parity_check(), lines.append) is fake_backends["sdpa"]
    )
    assert lines[-1] == "not using batched attention: no kernel image is available"


def test_nothing_works(fake_backends):
    fake_backends.update(dict.fromkeys(fake_backends, RaisingBackend()))
    with pytest.raises(ModelLoadError, match=r"no attention .* sdpa: no kernel image is available"):
        choose.choose_attention("auto", CUDA, parity_check())


def test_a_named_backend_that_fails_raises_with_the_figures(fake_backends):
    fake_backends["triton"] = FAULTY_BACKENDS["NaN"]
    with pytest.raises(ModelLoadError, match=r"triton attention .* off by inf .* explains 0\.001"):
        choose.choose_attention("triton", CUDA, parity_check())


def test_the_first_right_backend_is_chosen(fake_backends):
    assert choose.choose_attention("auto", CUDA, parity_check()) is fake_backends["triton"]
    assert choose.choose_attention("auto", CUDA) is fake_backends["triton"]


def test_nothing_is_checked_on_other_devices():
    assert choose.choose_attention("auto", CPU, parity_check()).name == "batched"
    assert choose.choose_attention("sdpa", CPU, parity_check()).name == "sdpa"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "llama4_text"])
def test_the_parity_check_of_a_model_has_its_own_kinds_of_layers(family):
    from stonechat_models.backends.transformers.model import TransformersModel
    from tests.models.engines import model_info
    from tests.models.tiny_models import tiny_model

    model = TransformersModel(tiny_model(family), model_info(), SdpaBackend())
    model.attention_parity_check.run(BatchedBackend())
    features = {
        tuple(
            value is not None
            for value in (k.spec.sliding_window, k.spec.softcap, k.spec.sinks, k.spec.chunk_size)
        )
        for k in model.attention_parity_check.kinds
    }
    assert (
        features
        == {
            "llama": {(False, False, False, False)},
            "gemma2": {(True, True, False, False), (False, True, False, False)},
            "gpt_oss": {(True, False, True, False), (False, False, True, False)},
            "llama4_text": {(False, False, False, True), (False, False, False, False)},
        }[family]
    )
    model.set_attention(BatchedBackend())
    assert model.info.attention_backend == "batched"
