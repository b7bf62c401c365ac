"""`stonechat serve FOLDER` with an embedding model, from the command line to the answer."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "stonechat_server.cli"]


@pytest.fixture
def started(embedder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server once it is ready, and what it has printed."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("server", "models"))
    words = ["serve", str(embedder), "--engine-process", "--port", "0", "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, *words, "--ledger", "off"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("curl "):
                break
        try:
            yield process, "".join(lines)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.mark.slow
def test_an_embedding_model_is_served_from_a_process_of_its_own(
    started: tuple[subprocess.Popen[str], str], client: TestClient
) -> None:
    """Its vectors are those of an engine in this process."""
    process, banner = started
    texts = ["the cat", "a dog"] * 20
    expected = client.post("/v1/embeddings", json={"input": texts}).json()["data"]
    assert "  vectors   32 dimensions, pooling mean, length 1" in banner
    assert "  texts     up to 48 tokens" in banner
    assert "KV cache" not in banner
    assert "warning" not in banner
    url = banner.splitlines()[-1].split()[1].removesuffix("/embeddings")
    assert url.endswith("/v1")
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as openai_client:
        answer = openai_client.embeddings.create(model="tiny-bert", input=texts)
    vectors = np.array([item.embedding for item in answer.data])
    assert vectors.shape == (40, 32)
    np.testing.assert_allclose(vectors, [item["embedding"] for item in expected], atol=2e-6)
    assert httpx.get(url.removesuffix("/v1") + "/health").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
