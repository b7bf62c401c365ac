"""Damages model files, loads them and asks for an answer: a program for `test_model_file.py`.

Arguments: the folder with the undamaged models, the first case and the case to stop at. A line of
JSON per case goes to the standard output, [case, what was damaged, outcome]. The outcome is
`answers`, `refused: …`, or the traceback of any other exception. A case that takes too much time
ends the program with a signal.
"""

import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.runtime.build import build_engine
from stonechat_models.types import GenerateRequest, SamplingParams
from tests.models.file_mutations import MUTATIONS

MEMORY = 2 << 30
"""Bytes of address space beyond what the program takes at its start."""
CASE_SECONDS = 30
"""Processor time of a case."""
MAX_STEPS = 30


def outcome_of(model: Path) -> str:
    """Load a model and generate a few tokens."""
    config = EngineConfig(
        model=str(model), device="cpu", threads=1, kv_cache_bytes=4 << 20, max_num_seqs=4
    )
    try:
        engine, tokenizer = build_engine(config, lambda line: None)
        prompt = tokenizer.encode("Hello the world é", add_special_tokens=True)[-40:]
        params = SamplingParams(temperature=0.0, max_tokens=3)
        engine.add(GenerateRequest(request_id="x", prompt_token_ids=prompt, params=params), ())
        for _ in range(MAX_STEPS):
            if not engine.has_work:
                return "answers"
            tokenizer.decode([i for output in engine.step() for i in output.token_ids])
        raise AssertionError("the engine does not finish")
    except ModelLoadError as error:
        is_limit = isinstance(error.__cause__, MemoryError) or "allocate memory" in str(error)
        return f"{'out of memory' if is_limit else 'refused'}: {error}"
    except BaseException:
        return traceback.format_exc()


def damaged_model(models: Path, folder: Path, rng: random.Random) -> tuple[Path, str]:
    """Copy a model and damage one of its files. Return its path, and what was done."""
    source = rng.choice(sorted(models.iterdir()))
    model = folder / source.name
    if source.is_dir():
        shutil.copytree(source, model)
        names = [p.name for p in sorted(model.iterdir()) if p.suffix in MUTATIONS]
        weights = [{"config.json": 6, "model.safetensors": 4}.get(name, 2) for name in names]
        path = model / rng.choices(names, weights)[0]
    else:
        shutil.copy(source, model)
        path = model
    done = MUTATIONS[path.suffix](path, rng)
    return model, f"{source.name}/{path.name}: {done}"


def main(models: Path, first: int, stop: int) -> None:
    for model in sorted(models.iterdir()):
        assert outcome_of(model) == "answers", outcome_of(model)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    for case in range(first, stop):
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            model, done = damaged_model(models, Path(folder), random.Random(case))
            print(json.dumps([case, done, "no outcome"]), flush=True)
            print(json.dumps([case, done, outcome_of(model)]), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
