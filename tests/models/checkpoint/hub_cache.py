"""Models in the layout of the Hugging Face cache."""

from collections.abc import Mapping
from pathlib import Path


def add_hub_model(caches: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """Add a model to the Hugging Face cache in `caches`. Return its snapshot folder."""
    repo = caches / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    for number, (file, content) in enumerate(files.items()):
        blob = repo / "blobs" / f"blob{number}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(Path("../../blobs") / blob.name)
    return snapshot
