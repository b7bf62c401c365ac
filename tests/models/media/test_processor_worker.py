"""What the process that prepares images answers when the processor does not."""

import io
from unittest.mock import Mock

import pytest
from PIL import Image

from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media import processor_worker
from stonechat_models.media.records import Answer, ImageOptions, Task


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("error", "kind", "reason", "failure"),
    [
        (
            MemoryError(),
            "too_large",
            "takes too much memory to prepare (the limit is 4096 MiB)",
            "",
        ),
        (ValueError("no"), "unfit", "cannot be prepared for this model: no", ""),
        (UnsupportedModelError("its processor"), "", "", "its processor"),
    ],
)
def test_whose_fault_an_error_is(error: Exception, kind: str, reason: str, failure: str) -> None:
    processor = Mock()
    processor.prepare.side_effect = error
    answer = processor_worker._answer(processor, Task(png(), ImageOptions(), b""))
    assert answer == Answer(kind=kind, reason=reason, failure=failure)
