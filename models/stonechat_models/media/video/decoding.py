"""The bytes of a video file to frames. What the file holds counts, not what it is called.

FFmpeg gets the bytes alone: it opens no other file and no address, whatever the file says.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import av
from PIL import Image

from stonechat_models.media.records import UnusableMediaError, VideoOptions, too_long
from stonechat_models.media.video.records import Choose, Size, Video, VideoFacts

FORMATS = {b"ftyp": "mov", b"\x1aE\xdf\xa3": "matroska"}
"""FFmpeg's readers by the bytes that they begin with: MP4 and MOV behind a length, WebM and
Matroska."""
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4"})
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
"""By quarters of a turn, counterclockwise."""
MAX_RATE = 240
"""Frames a second of a file at most, on average."""
DEFAULT_RATE = 24.0
"""Of a file that does not say how many frames it has a second."""


def decode_video(
    data: bytes,
    options: VideoOptions,
    choose: Choose,
    resample: int = Image.Resampling.BICUBIC,
) -> Video:
    """Return the frames that `choose` wants.

    Only they are scaled and kept, and parts of the file without them are not decoded. If the file
    has fewer frames than it says, the last one stands for those that are missing. `resample` is
    Pillow's filter for the scaling.

    Raises `UnusableMediaError`, and what `choose` raises. Sizes and lengths are checked before
    frames are decoded.
    """
    if not data:
        raise UnusableMediaError("empty", "is empty")
    try:
        with _opened(data) as container:
            return _decoded(container, options, choose, resample)
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error  # without FFmpeg's number
        raise UnusableMediaError("broken", f"is broken: {reason}"[:300]) from None


def _opened(data: bytes) -> Any:
    format_name = FORMATS.get(data[4:8]) or FORMATS.get(data[:4])
    if format_name is None:
        raise UnusableMediaError("format", "is not an MP4, MOV, WebM or Matroska file")

    def refuse(url: str, *_: object) -> Any:
        raise PermissionError(f"the file refers to another: {url}")

    return av.open(
        io.BytesIO(data),
        format=format_name,
        io_open=refuse,
        container_options={"codec_whitelist": ",".join(sorted(CODECS))},
    )


def _decoded(container: Any, options: VideoOptions, choose: Choose, resample: int) -> Video:
    stream = _stream(container, options)
    packets = _packets(container, stream, options)
    times = sorted(packet.pts for packet in packets if not packet.is_discard)
    if not times:
        raise UnusableMediaError("empty", "has no frames")
    rate = float(stream.average_rate or DEFAULT_RATE)
    if len(times) > max(1.0, options.max_seconds * min(rate, MAX_RATE)):
        raise too_long(options.max_seconds)
    reader = _FrameReader(stream.codec_context, packets)
    first = reader.frame_at(times[0])
    width, height, turns = first.width, first.height, first.rotation // 90 % 4
    facts = VideoFacts(len(times), rate, (height, width) if turns % 2 else (width, height))
    indices, size = choose(facts)
    frames = [_image(reader.frame_at(times[i]), turns, size, resample) for i in indices]
    return Video(frames, indices, facts)


def _stream(container: Any, options: VideoOptions) -> Any:
    """Return the first stream of pictures, whose decoder refuses frames that are too large."""
    if not container.streams.video:
        raise UnusableMediaError("format", "has no pictures")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        name = "an unknown codec" if context is None else f"the codec {context.name}"
        raise UnusableMediaError(
            "format", f"has {name}: H.264, H.265, VP8, VP9, AV1 and MPEG-4 are read"
        )
    pixels = stream.width * stream.height
    if pixels > options.max_pixels:
        raise UnusableMediaError(
            "too_large",
            f"has frames of {stream.width} x {stream.height} pixels, and the limit is "
            f"{options.max_pixels} in all",
        )
    context.options = {"max_pixels": str(options.max_pixels)}
    context.thread_count = 1
    return stream


def _packets(container: Any, stream: Any, options: VideoOptions) -> list[Any]:
    """Return the packets of a stream in the order of decoding. Nothing is decoded."""
    most = max(1, int(options.max_seconds * MAX_RATE))
    packets = []
    for packet in container.demux(stream):
        if packet.pts is not None and packet.size:
            packets.append(packet)
        if len(packets) > most:
            raise too_long(options.max_seconds)
    return packets


class _FrameReader:
    """Decodes packets up to the frames of ascending times, from the last key frame before each."""

    def __init__(self, context: Any, packets: Sequence[Any]) -> None:
        self._context = context
        self._packets = packets
        self._keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        self._key_times = [packets[i].pts for i in self._keys]
        self._next = 0
        """The packet that is decoded next."""
        self._frames: Iterator[Any] = self._decode()
        self._frame: Any = None

    def frame_at(self, time: int) -> Any:
        """Return the first frame of this time or later, or else the last frame.

        Raises `UnusableMediaError` if none can be decoded.
        """
        if self._frame is None or self._frame.pts < time:
            self._skip(time)
        while self._frame is None or self._frame.pts < time:
            frame = next(self._frames, None)
            if frame is None:
                break
            if frame.pts is not None:
                self._frame = frame
        if self._frame is None:
            raise UnusableMediaError("broken", "is broken: no frame can be decoded")
        return self._frame

    def _skip(self, time: int) -> None:
        """Go on with the last key frame up to a time, if it is not decoded yet."""
        key = bisect_right(self._key_times, time) - 1
        if key >= 0 and self._keys[key] > self._next:
            self._context.flush_buffers()
            self._next = self._keys[key]
            self._frames = self._decode()

    def _decode(self) -> Iterator[Any]:
        while self._next < len(self._packets):
            packet = self._packets[self._next]
            self._next += 1
            yield from self._context.decode(packet)
        yield from self._context.decode(None)


def _image(frame: Any, turns: int, size: Size, resample: int) -> Image.Image:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if turns:
        image = image.transpose(TURNS[turns - 1])
    return image.resize(size, Image.Resampling(resample))
