"""The process that prepares images, audio or videos:
`python -m stonechat_models.media.processor_worker FOLDER MODALITY ID`.

FOLDER has the model's processor, MODALITY is `image`, `audio` or `video`, and ID its placeholder. A
task is a `Task`, an answer an `Answer`, both in MessagePack. A signal ends the process if a file
takes too much time.
"""

import os
import resource
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import msgspec

from stonechat_models.child_process import limit, limit_growth, serve_tasks
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.media.hf_processor import HFProcessor, as_tensors
from stonechat_models.media.records import (
    Answer,
    AudioOptions,
    ImageOptions,
    MediaPiece,
    PreparedMedia,
    Task,
    UnusableMediaError,
    VideoOptions,
    kind_of,
)
from stonechat_models.media.speech import SpeechProcessor, transcribes_speech
from stonechat_models.media.video.processor import VideoProcessor
from stonechat_models.model_file import reading, reason_of
from stonechat_models.types import Modality

MEMORY_BYTES = 4 << 30
"""What the work on one file may add to the size of the process."""
CPU_SECONDS = {"image": 20.0, "audio": 60.0, "video": 60.0}
"""The processor time that one file may take."""
NICENESS = 5


Processor = HFProcessor | SpeechProcessor | VideoProcessor


class _Worker:
    """Answers tasks with a processor, or with the reason why there is none."""

    def __init__(self, folder: Path, modality: Modality, token_id: int) -> None:
        self.failure = ""
        self._processor: Processor | None = None
        try:
            with reading(f"the {modality} processor of {folder}"):
                if modality == "video":
                    self._processor = VideoProcessor(folder, token_id)
                elif transcribes_speech(folder):
                    self._processor = SpeechProcessor(folder)
                else:
                    self._processor = HFProcessor(folder, modality, token_id)
        except ModelLoadError as error:
            self.failure = str(error)

    def answer(self, data: bytes) -> bytes:
        if self._processor is None:
            return msgspec.msgpack.encode(Answer(failure=self.failure))
        try:
            task = msgspec.msgpack.decode(data, type=Task)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS[kind_of(task.options)])
            return msgspec.msgpack.encode(_answer(self._processor, task))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)


class _WithoutTorch:
    """A finder of modules that does not find PyTorch."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, *others: Any) -> Any:
        return None if name == "torch" else self._finder.find_spec(name, *others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def _answer(processor: Processor, task: Task) -> Answer:
    try:
        medium, facts = _decoded(task, processor)
        context = {"among_others": True} if getattr(task.options, "among_others", False) else {}
        text, num_tokens, arrays = processor.prepare(medium, **context)
        parts = processor.cut(num_tokens, arrays)
        pieces = tuple(MediaPiece(number, as_tensors(part)) for number, part in parts)
    except UnusableMediaError as error:
        return Answer(kind=error.kind, reason=error.reason)
    except MemoryError:
        reason = f"takes too much memory to prepare (the limit is {MEMORY_BYTES >> 20} MiB)"
        return Answer(kind="too_large", reason=reason)
    except UnsupportedModelError as error:
        return Answer(failure=str(error))
    except Exception as error:  # processors raise many types, of sizes that they cannot take
        return Answer(kind="unfit", reason=f"cannot be prepared for this model: {reason_of(error)}")
    return Answer(
        prepared=PreparedMedia(
            modality=cast(Modality, kind_of(task.options)),
            content_hash=task.content_hash,
            placeholder=processor.placeholder,
            text=text,
            number_marks=getattr(processor, "number_marks", None),
            num_tokens=num_tokens,
            pieces=pieces,
            **facts,
        )
    )


def _decoded(task: Task, processor: Any) -> tuple[Any, dict[str, Any]]:
    """Return what the processor takes, and what `PreparedMedia` says of the file."""
    if isinstance(task.options, ImageOptions):
        from stonechat_models.media.image_decoding import decode_image

        image, (width, height) = decode_image(task.data, task.options)
        return image, {"width": width, "height": height}
    if isinstance(task.options, VideoOptions):
        from stonechat_models.media.video.decoding import decode_video

        choose = processor.chooser(task.options)
        video = decode_video(task.data, task.options, choose, processor.resample)
        return video, {"seconds": video.facts.seconds}
    from stonechat_models.media.audio_decoding import decode_audio

    assert isinstance(task.options, AudioOptions)
    samples, seconds = decode_audio(
        task.data, task.options, processor.sampling_rate, processor.check_seconds
    )
    return samples, {"seconds": seconds}


def main() -> None:
    """Prepare files until the input ends.

    Without PyTorch, transformers is imported in a fraction of the time and memory, and processors
    of Pillow do not need it. If there is none for the model, the process starts again with PyTorch.
    """
    folder, modality, token_id, *with_torch = sys.argv[1:]
    if not with_torch:
        os.nice(NICENESS)
    if modality != "audio" and not with_torch:
        sys.meta_path[:] = [_WithoutTorch(finder) for finder in sys.meta_path]
    worker = _Worker(Path(folder), cast(Modality, modality), int(token_id))
    may_need_torch = modality == "image" and find_spec("torchvision") is not None
    if worker.failure and not with_torch and may_need_torch:
        os.execv(sys.executable, [*sys.orig_argv, "with-torch"])
    limit(resource.RLIMIT_CORE, 0)
    limit_growth(MEMORY_BYTES)
    serve_tasks(worker.answer)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
