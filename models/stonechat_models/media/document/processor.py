"""Reads PDF files, for all models of a server."""

import hashlib
from importlib.util import find_spec

import msgspec

from stonechat_models.child_process import ChildProcess
from stonechat_models.media.file_processor import FileProcessor
from stonechat_models.media.records import Document, DocumentOptions

WORKER = "stonechat_models.media.document.worker"
CACHE_BYTES = 128 << 20
"""Documents that are kept."""


class DocumentProcessor(FileProcessor[DocumentOptions, Document]):
    """Reads PDF files in processes of its own."""

    def __init__(self, num_workers: int | None = None) -> None:
        super().__init__(CACHE_BYTES, num_workers)

    def _new_process(self, kind: str) -> ChildProcess:
        return ChildProcess(WORKER)

    def _content_hash(self, data: bytes, options: DocumentOptions) -> bytes:
        key = hashlib.blake2b(msgspec.msgpack.encode(options), digest_size=16).digest()
        return hashlib.blake2b(data, digest_size=16, key=key).digest()


def document_refusal() -> str:
    """Return that the package for PDF files is missing; an empty text if it is there."""
    if find_spec("pypdfium2") is None:
        return "PDF files need pypdfium2: pip install 'stonechat[documents]'"
    return ""
