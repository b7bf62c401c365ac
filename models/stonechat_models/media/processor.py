"""Prepares images, audio and videos for one model."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from stonechat_models.child_process import ChildProcess
from stonechat_models.media.file_processor import FileProcessor
from stonechat_models.media.processor_loading import CONFIGS, VIDEO_CONFIG, counts_images
from stonechat_models.media.records import (
    AudioOptions,
    ImageOptions,
    MediaOptions,
    PreparedMedia,
    VideoOptions,
)

WORKER = "stonechat_models.media.processor_worker"
CACHE_BYTES = 512 << 20
"""Prepared files that are kept."""


class MediaProcessor(FileProcessor[MediaOptions, PreparedMedia]):
    """Prepares images, audio and videos for one model, each modality in processes of its own."""

    def __init__(
        self, folder: Path, token_ids: Mapping[str, int], num_workers: int | None = None
    ) -> None:
        """`folder` has the files of the model's tokenizer and processor; none is read now but its
        settings. `token_ids` is `ModelInfo.media_token_ids`."""
        super().__init__(CACHE_BYTES, num_workers)
        self._folder = str(folder)
        self._token_ids = token_ids
        self._seed = _settings_hash(folder)
        self._counts_images = counts_images(folder)

    def prepare(
        self, files: Sequence[bytes], options: MediaOptions
    ) -> "Future[list[PreparedMedia]]":
        """Prepare files later, as the class above says."""
        if isinstance(options, ImageOptions) and not self._counts_images:
            options = msgspec.structs.replace(options, among_others=False)
        return super().prepare(files, options)

    def _new_process(self, kind: str) -> ChildProcess:
        return ChildProcess(WORKER, self._folder, kind, str(self._token_ids[kind]))

    def _content_hash(self, data: bytes, options: MediaOptions) -> bytes:
        match options:
            case ImageOptions():
                kind = b"low" * (options.detail == "low") + b" among" * options.among_others
            case AudioOptions():
                kind = b"audio"
            case VideoOptions():
                kind = b"video %d" % options.max_frames
        return hashlib.blake2b(data, digest_size=16, key=self._seed, person=kind).digest()


def _settings_hash(folder: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in (*CONFIGS, VIDEO_CONFIG):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.digest()
