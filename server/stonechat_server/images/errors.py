"""What can be wrong with an image of a request. The codes are those that OpenAI publishes."""

from stonechat_models import size_text


class ImageError(Exception):
    """The message goes on from "the image"; `code` is that of the error answer."""

    code = "invalid_image"


class FetchError(ImageError):
    """An image could not be fetched."""

    code = "failed_to_download_image"


class UrlError(ImageError):
    """A URL is not one of an image, or may not be fetched."""

    code = "invalid_image_url"


class Base64Error(ImageError):
    """The data of an image is not base64."""

    code = "invalid_base64_image"


class MediaTypeError(ImageError):
    """An image is said to be of another type than it is, or of one that is not read here."""

    code = "unsupported_image_media_type"


class EmptyImageError(ImageError):
    """An image has no bytes."""

    code = "empty_image_file"


class TooLargeError(ImageError):
    """An image has too many bytes."""

    code = "image_file_too_large"


def too_large(limit: int) -> TooLargeError:
    """The error for an image beyond `--max-image-size`."""
    return TooLargeError(
        f"has more than {size_text(limit)}, the limit that the server's --max-image-size sets"
    )
