"""Video files to frames: those of one plain pass of FFmpeg, and the bounds on it."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from stonechat_models.media.records import UnusableMediaError, VideoOptions
from stonechat_models.media.video import decoding as video_decoding
from stonechat_models.media.video.decoding import decode_video
from stonechat_models.media.video.records import Size, Video, VideoFacts
from tests.models.media.videos import RATE, SIZE, all_frames, pictures, video_file

OPTIONS = VideoOptions()
GROUPS = {"g": "8", "bf": "2"}
"""Groups of eight frames, of which some are decoded before frames that are shown earlier."""


def decoded(
    data: bytes, indices: Sequence[int], size: Size = SIZE, options: VideoOptions = OPTIONS
) -> Video:
    return decode_video(data, options, lambda facts: (indices, size))


def assert_frames(video: Video, expected: np.ndarray) -> None:
    assert len(video.frames) == len(expected)
    for frame, other in zip(video.frames, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(frame), other)


@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "mp4", GROUPS),
        ("libx264", "mov", {}),
        ("libx264", "matroska", {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}),
        ("libx265", "mp4", {"x265-params": "log-level=none:keyint=8:open-gop=1"}),
        ("mpeg4", "mp4", GROUPS),
        ("libvpx", "webm", {"g": "8"}),
        ("libvpx-vp9", "webm", {"g": "8"}),
        ("libsvtav1", "mp4", {"svtav1-params": "keyint=8", "preset": "12"}),
    ],
)
@pytest.mark.parametrize("indices", [[0, 1, 2], [3, 4, 17, 30, 39], [39]])
def test_frames_equal_those_of_a_whole_pass(
    codec: str, container: str, options: dict[str, str], indices: list[int]
) -> None:
    data = video_file(pictures(40), codec, container, **options)
    video = decoded(data, indices)
    assert video.facts == VideoFacts(40, RATE, SIZE)
    assert_frames(video, all_frames(data)[indices])


def test_what_no_frame_needs_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins again at the key frame 32."""
    decode, times = video_decoding._FrameReader._decode, []

    def noted(reader: Any) -> Iterator[Any]:
        for frame in decode(reader):
            times.append(round(frame.time * RATE))
            yield frame

    monkeypatch.setattr(video_decoding._FrameReader, "_decode", noted)
    decoded(video_file(pictures(40), g="8", bf="0", sc_threshold="0"), [0, 33])
    assert times == [0, 32, 33]


def test_a_turned_video_is_upright() -> None:
    """A phone writes how it was held as a matrix."""
    data = bytearray(video_file(pictures(4)))
    matrix = data.index(b"tkhd") + 4 + 40
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise
    data[matrix : matrix + 36] = struct.pack(">9i", *quarter)
    video = decoded(bytes(data), [0, 3], SIZE[::-1])
    assert video.facts.size == SIZE[::-1]
    assert_frames(video, np.rot90(all_frames(bytes(data))[[0, 3]], -1, axes=(1, 2)))


def test_frames_are_scaled_one_by_one() -> None:
    frames = np.full((3, 64, 96, 3), 90, np.uint8)
    video = decoded(video_file(frames), [0, 2], (28, 56))
    assert [frame.size for frame in video.frames] == [(28, 56)] * 2
    assert np.abs(np.asarray(video.frames[0], int) - 90).max() < 5


def test_a_file_with_fewer_frames_than_it_says() -> None:
    """The last one stands for the others: a frame that no decoder gives out."""
    data = video_file(pictures(10), bf="0")
    video = decode_video(data, OPTIONS, lambda facts: ([0, 9], SIZE))
    assert_frames(video, all_frames(data)[[0, 9]])


ANIMATION = video_file(pictures(30))


@pytest.mark.parametrize(
    ("data", "options", "kind", "reason"),
    [
        (b"", OPTIONS, "empty", "is empty"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", OPTIONS, "format", "is not an MP4"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", OPTIONS, "format", "is not an MP4"),
        (b"\0\0\0\x18ftypmp42" + bytes(200), OPTIONS, "broken", "is broken"),
        (b"\x1aE\xdf\xa3" + bytes(200), OPTIONS, "broken", "is broken"),
        (ANIMATION[:300], OPTIONS, "broken", "is broken"),
        (ANIMATION, VideoOptions(max_seconds=1.0), "too_long", "is longer than the limit of 1 s"),
        (ANIMATION, VideoOptions(max_pixels=6143), "too_large", "frames of 96 x 64 pixels"),
        (video_file(pictures(2), "mjpeg", "mov"), OPTIONS, "format", "the codec mjpeg"),
    ],
)
def test_files_that_are_refused(data: bytes, options: VideoOptions, kind: str, reason: str) -> None:
    with pytest.raises(UnusableMediaError) as error_info:
        decoded(data, [0], options=options)
    assert (error_info.value.kind, reason in error_info.value.reason) == (kind, True), error_info


def test_sound_alone_is_no_video() -> None:
    data = sound_file()
    with pytest.raises(UnusableMediaError, match="has no pictures"):
        decoded(data, [0])


def sound_file() -> bytes:
    import io

    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target.getvalue()


def test_damage_inside_a_file_ends_in_frames_or_an_error() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        data = bytearray(ANIMATION)
        for place in generator.integers(0, len(data), 20):
            data[place] = generator.integers(0, 256)
        try:
            video = decode_video(bytes(data), OPTIONS, lambda facts: ([0], SIZE))
        except UnusableMediaError:
            continue
        assert video.frames[0].size == SIZE
