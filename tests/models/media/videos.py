"""Video files of pictures that differ from frame to frame."""

import io

import av
import numpy as np

SIZE = (96, 64)
RATE = 24


def pictures(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return smooth colours with a bar that moves: uint8[number, height, width, 3]."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    frames = np.zeros((number, height, width, 3), np.uint8)
    for i in range(number):
        frames[i, ..., 0] = (columns * 2 + 7 * i) % 256
        frames[i, ..., 1] = (rows * 3 + 5 * i) % 256
        frames[i, :, width * i // number :, 2] = 200
    return frames


def video_file(
    frames: np.ndarray,
    codec: str = "libx264",
    container: str = "mp4",
    rate: int = RATE,
    **options: str,
) -> bytes:
    """Return a file of these frames."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return target.getvalue()


def all_frames(data: bytes) -> np.ndarray:
    """Return all frames of a file, as FFmpeg decodes them in one pass: uint8[n, h, w, 3]."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
