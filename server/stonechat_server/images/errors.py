"""What can be wrong with the images of a request. The codes are those that OpenAI publishes."""

from stonechat_models import InvalidMediaError, size_text
from stonechat_server.errors import APIError, invalid

CODES = {
    "format": "unsupported_image_media_type",
    "empty": "empty_image_file",
    "broken": "image_parse_error",
    "too_large": "image_too_large",
}
"""The code of the error for each kind of `InvalidMediaError`."""


class ImageError(Exception):
    """The message goes on from "the image"; `code` is that of the error answer."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class FetchError(ImageError):
    """An image could not be fetched."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "failed_to_download_image")


class UrlError(ImageError):
    """A URL is not one of an image, or may not be fetched. The message goes on from "the URL"."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "invalid_image_url")


def too_large(limit: int) -> ImageError:
    """The error for an image beyond `--max-image-size`."""
    return ImageError(
        f"has more than {size_text(limit)}, the limit that the server's --max-image-size sets",
        "image_file_too_large",
    )


# --- the answers ---


def refused(path: str, error: ImageError | InvalidMediaError) -> APIError:
    """400: the image at `path` cannot be read, or not be prepared."""
    if isinstance(error, InvalidMediaError):
        code = CODES.get(error.kind, "invalid_image")
        return invalid(path, f"'{path}': the image {error.reason}.", code)
    what = "URL" if isinstance(error, UrlError) else "image"
    return invalid(path, f"'{path}': the {what} {error}.", error.code)


def too_many(number: int, limit: int) -> APIError:
    """400: a request has more images than `--max-images`."""
    message = (
        f"There are {number} images, and at most {limit} are allowed: the server's --max-images "
        "sets the limit."
    )
    return invalid("messages", message, "too_many_images")


def too_large_together(limit: int) -> APIError:
    """400: the files of a request are beyond `--max-images-size`."""
    message = (
        f"The images have more than {size_text(limit)} together, the limit that the server's "
        "--max-images-size sets."
    )
    return invalid("messages", message, "image_file_too_large")


def too_much_memory(limit: int) -> APIError:
    """400: the prepared images of a request are beyond `--image-memory`."""
    message = (
        f"The images need more than {size_text(limit)} of memory together once they are prepared, "
        "the limit that the server's --image-memory sets. Send fewer or smaller images."
    )
    return invalid("messages", message, "image_too_large")
