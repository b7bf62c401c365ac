"""The process that prepares images: `python -m stonechat_models.vision.processor_worker FOLDER ID`.

FOLDER has the model's processor, and ID is its placeholder token. A task is a `Task`, an answer an
`Answer`, both in MessagePack. A signal ends the process if an image takes too much time.
"""

import os
import resource
import signal
import sys
from pathlib import Path

import msgspec

from stonechat_models.child_process import limit, limit_growth, serve_tasks
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.model_file import reading, reason_of
from stonechat_models.types import ImageTensor
from stonechat_models.vision.decoding import UnusableImageError, decode_image
from stonechat_models.vision.hf_processor import HFProcessor
from stonechat_models.vision.records import Answer, PreparedImage, Task

MEMORY_BYTES = 4 << 30
"""What the work on one image may add to the size of the process."""
CPU_SECONDS = 20.0
"""The processor time that one image may take."""
NICENESS = 5


class _Worker:
    """Loads the processor with the first task."""

    def __init__(self, folder: Path, token_id: int) -> None:
        self._folder = folder
        self._token_id = token_id
        self._processor: HFProcessor | None = None

    def answer(self, data: bytes) -> bytes:
        try:
            processor = self._loaded()
        except ModelLoadError as error:
            return msgspec.msgpack.encode(Answer(failure=str(error)))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            return msgspec.msgpack.encode(
                _answer(processor, msgspec.msgpack.decode(data, type=Task))
            )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _loaded(self) -> HFProcessor:
        if self._processor is None:
            with reading(f"the image processor of {self._folder}"):
                self._processor = HFProcessor(self._folder, self._token_id)
            limit_growth(MEMORY_BYTES)
        return self._processor


def _answer(processor: HFProcessor, task: Task) -> Answer:
    try:
        image, (width, height) = decode_image(task.data, task.options)
        text, num_tokens, arrays = processor.prepare(image)
        tensors = {
            name: ImageTensor(array.dtype.name, array.shape, array.tobytes())
            for name, array in arrays.items()
        }
    except UnusableImageError as error:
        return Answer(kind=error.kind, reason=error.reason)
    except MemoryError:
        reason = f"takes too much memory to prepare (the limit is {MEMORY_BYTES >> 20} MiB)"
        return Answer(kind="too_large", reason=reason)
    except UnsupportedModelError as error:
        return Answer(failure=str(error))
    except Exception as error:  # processors raise many types, of sizes that they cannot take
        return Answer(kind="unfit", reason=f"cannot be prepared for this model: {reason_of(error)}")
    return Answer(
        image=PreparedImage(
            content_hash=task.content_hash,
            placeholder=processor.placeholder,
            text=text,
            num_tokens=num_tokens,
            width=width,
            height=height,
            tensors=tensors,
        )
    )


def main() -> None:
    """Prepare images until the input ends."""
    os.nice(NICENESS)
    limit(resource.RLIMIT_CORE, 0)
    serve_tasks(_Worker(Path(sys.argv[1]), int(sys.argv[2])).answer)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
