"""Several models on one CUDA device, each in an engine process of its own."""

import httpx
import pytest
import torch

from stonechat_server.catalog.catalog import Catalog
from stonechat_server.catalog.entry import Entry
from stonechat_server.catalog.loader import ProcessLoader
from stonechat_server.settings import Settings
from tests.models.tiny_models import save_tiny_model
from tests.models.tiny_tokenizers import save_byte_level
from tests.server.live_server import live_server

pytestmark = pytest.mark.alone

DEVICE = "cuda"
KV_BYTES = 1 << 28
FAMILIES = ("llama", "qwen3")


def test_two_models_are_loaded_when_they_are_asked_for(tmp_path):
    tokenizer_folder = save_byte_level(tmp_path / "tokenizer")
    entries = []
    for family in FAMILIES:
        folder = save_tiny_model(tmp_path / family, family, tokenizer_folder, vocab_size=320)
        settings = Settings(
            model=str(folder),
            device=DEVICE,
            dtype="float32",
            max_num_seqs=4,
            max_batch_tokens=32,
            max_model_len=256,
            kv_cache_size=KV_BYTES,
        )
        entries.append(Entry(names=(family,), settings=settings))
    catalog = Catalog(entries, ProcessLoader(), entries[0].settings)
    before = free_memory()
    with (
        live_server(Settings(ledger="off"), catalog) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        answers = {family: answer(client, family) for family in (*FAMILIES, *FAMILIES)}
        assert all(answers.values())
        assert [entry.num_loads for entry in entries] == [1, 1], "both have room"
        for family in FAMILIES:
            assert answer(client, family) == answers[family]
            assert client.post("/v1/models/unload", json={"model": family}).status_code == 200
        assert answer(client, FAMILIES[0]) == answers[FAMILIES[0]]
        assert entries[0].num_loads == 2
        assert client.post("/v1/models/unload", json={"model": FAMILIES[0]}).status_code == 200
        assert before - free_memory() < KV_BYTES // 2, "their memory is free again"


def free_memory():
    return torch.cuda.mem_get_info(0)[0] if DEVICE == "cuda" else 0


def answer(client, model):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.0,
        "max_tokens": 8,
        "ignore_eos": True,
    }
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]
