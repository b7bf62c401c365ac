"""lm-evaluation-harness scores the same over HTTP as with its own `hf` model on the same weights.

`STONECHAT_CLIENTS` names a folder whose `lm-eval` is a virtual environment with
`lm-eval[api,hf]`. The tasks in `lm_eval/` are small: endings and answers to choose (as HellaSwag
and ARC have them), sentences to go on with, and texts whose perplexity is measured.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stonechat_models.checkpoint.cache import content_hash
from stonechat_models.checkpoint.resolve import ModelFiles

from .clients import CLIENTS
from .conftest import LiveServer, live_server

pytestmark = [pytest.mark.clients, pytest.mark.slow]

TASKS = Path(__file__).parent / "lm_eval"
PYTHON = CLIENTS / "lm-eval" / "bin" / "python"
NEEDED = "import accelerate, lm_eval, tenacity, torch"
TOLERANCE = 1e-3

Samples = dict[tuple[str, int], dict[str, Any]]
"""What the harness logged of each document, by task and number."""


@pytest.fixture(scope="module")
def float_server(say: Callable[[str], None]) -> Iterator[LiveServer]:
    is_there = PYTHON.is_file() and not subprocess.run([str(PYTHON), "-c", NEEDED]).returncode
    if not is_there:
        pytest.skip(f"{PYTHON} has no lm-eval[api,hf]")
    with live_server(say, backend="transformers", dtype="float32") as live:
        yield live


@pytest.fixture(scope="module")
def float_folder(float_server: LiveServer, default_model_files: ModelFiles) -> Path:
    """The weights that the server runs, as transformers reads them."""
    folder = default_model_files.folder
    content = content_hash(default_model_files.weights)[:24]
    return folder.with_name(f"{folder.name}-{content}-float32")


@pytest.fixture(scope="module")
def expected(float_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    arguments = {"pretrained": str(float_folder), "dtype": "float32"}
    return evaluate("hf", arguments, tmp_path_factory.mktemp("hf"), "--device", "cpu")


def evaluate(model: str, arguments: dict[str, str], folder: Path, *options: str) -> Samples:
    """Run all tasks. Returns what was logged of each document."""
    names = ",".join(f"stonechat_{path.stem}" for path in sorted(TASKS.glob("*.yaml")))
    outcome = subprocess.run(
        [
            *(str(PYTHON), "-m", "lm_eval", "--model", model, *options),
            *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
            *("--tasks", names, "--include_path", ".", "--log_samples"),
            *("--output_path", str(folder / "out")),
        ],
        cwd=TASKS,
        env={
            **os.environ,
            "HF_HOME": str(folder / "hf"),
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    samples = {}
    for path in (folder / "out").rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            samples[task, sample["doc_id"]] = sample
    assert len(samples) == sum(len(path.read_text().split("\n")) - 1 for path in data_files())
    return samples


def data_files() -> list[Path]:
    return sorted(TASKS.glob("*.jsonl"))


WAYS = {
    "token ids": {"tokenizer_backend": "huggingface"},
    "texts": {"tokenizer_backend": "huggingface", "tokenized_requests": "False"},
    "the server's tokenizer": {"tokenizer_backend": "remote"},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_scores_are_those_of_the_weights(
    way: str, float_server: LiveServer, float_folder: Path, expected: Samples, tmp_path: Path
) -> None:
    arguments = {
        "model": float_server.model,
        "base_url": f"{float_server.url}/v1/completions",
        "num_concurrent": "2",
        "max_retries": "1",
        **WAYS[way],
    }
    if arguments["tokenizer_backend"] == "huggingface":
        arguments["tokenizer"] = str(float_folder)
    found = evaluate("local-completions", arguments, tmp_path, "--batch_size", "4")
    assert found.keys() == expected.keys()
    for key, sample in found.items():
        for metric in ("acc", "acc_norm", "exact_match"):
            assert sample.get(metric) == expected[key].get(metric), (key, metric)
        wanted = [response[0] for response in expected[key]["resps"]]
        for response, value in zip(sample["resps"], wanted, strict=True):
            assert_same(response[0], value, key)


def assert_same(found: Any, wanted: Any, key: tuple[str, int]) -> None:
    """Compare a text, a log-likelihood, or one with the flag that its tokens are the likeliest."""
    if key[0] == "stonechat_sentences":
        assert found == wanted, key
    elif isinstance(wanted, list):
        assert float(found[0]) == pytest.approx(float(wanted[0]), abs=TOLERANCE), key
        assert found[1] == wanted[1], key
    else:
        assert float(found) == pytest.approx(float(wanted), abs=TOLERANCE), key
