"""What is imported of transformers, in a fresh process."""

import subprocess
import sys

import pytest

from tests.models.test_model_file import child_environment

SCRIPT = """
import sys
from importlib.util import find_spec
from pathlib import Path

from stonechat_models.backends.transformers.loading.importing import UNUSED, import_transformers

import_transformers()
assert "transformers.modeling_utils" in sys.modules
assert not [name for name in UNUSED if name in sys.modules]

import transformers
from transformers.utils import import_utils

for name in UNUSED:
    assert getattr(import_utils, f"is_{name}_available")() == (find_spec(name) is not None)
again = transformers.utils._LazyModule(
    "again",
    transformers.models.__file__,
    import_utils.define_import_structure(transformers.models.__file__),
)
assert again._import_structure == transformers.models._import_structure
assert again._class_to_module == transformers.models._class_to_module
assert len(again._class_to_module) > 1000
assert transformers.models.llama.modeling_llama.LlamaForCausalLM is transformers.LlamaForCausalLM
assert transformers.models.whisper.WhisperFeatureExtractor is transformers.WhisperFeatureExtractor
"""

ASKED_BEFORE = """
from transformers.utils import import_utils

from stonechat_models.backends.transformers.loading.importing import UNUSED, import_transformers

found = {name: getattr(import_utils, f"is_{name}_available")() for name in UNUSED}
import_transformers()
assert found == {name: getattr(import_utils, f"is_{name}_available")() for name in UNUSED}
"""


@pytest.mark.parametrize("script", [SCRIPT, ASKED_BEFORE], ids=["left out", "found before"])
def test_packages_for_training_are_left_out_unless_they_were_found(script: str) -> None:
    """And all names of transformers are there."""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=child_environment()
    )
    assert process.returncode == 0, process.stderr
