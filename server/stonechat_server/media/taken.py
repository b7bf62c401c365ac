"""What files a model takes beside text, and how many of them a request may have."""

from collections import Counter
from collections.abc import Sequence

from stonechat_models import Modality, ModelInfo
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.errors import unsupported
from stonechat_server.media.errors import FileKind, too_many
from stonechat_server.media.references import MediaReference
from stonechat_server.settings import Settings

TEXT_ONLY = "This model takes text only: no images, audio or videos."


def modalities_of(info: ModelInfo) -> list[Modality]:
    """What a model takes beside text."""
    modalities: list[Modality] = ["image"] if info.images is not None else []
    if info.audio is not None:
        modalities.append("audio")
    if info.video is not None:
        modalities.append("video")
    return modalities


def check_taken(references: Sequence[MediaReference], engine: EngineLike) -> None:
    """Raise `APIError` 400, which names the first part of a modality that the model does not take.

    Any model takes documents, and so a file as long as its content is not known.
    """
    taken = (None, "document", *modalities_of(engine.model))
    for reference in references:
        if reference.modality not in taken:
            raise unsupported(reference.path, _why_not(reference.modality, engine))


def _why_not(modality: FileKind | None, engine: EngineLike) -> str:
    info = engine.model
    what, reason = "images", info.image_refusal
    if modality == "audio":
        what, reason = "audio", info.audio_refusal
    elif modality == "video":
        what, reason = "videos", info.video_refusal
    if reason:
        return f"This model takes no {what} here: {reason}"
    return f"This model takes no {what}." if info.media_token_ids else TEXT_ONLY


def check_numbers(references: Sequence[MediaReference], settings: Settings) -> None:
    """Raise `APIError` 400 for more images, audio, videos or documents than a request may have.

    Files whose content is not known yet may be as many as those of which most are allowed.
    """
    numbers = Counter(reference.modality for reference in references)
    limits: dict[FileKind, int] = {
        "image": settings.max_images,
        "audio": settings.max_audio_clips,
        "video": settings.max_videos,
        "document": settings.max_documents,
    }
    most = max(limits, key=limits.__getitem__)
    if numbers[None] > limits[most]:
        raise too_many(numbers[None], limits[most], most)
    for modality, limit in limits.items():
        if numbers[modality] > limit:
            raise too_many(numbers[modality], limit, modality)
