"""Prompts with videos as the engine takes them, and plain transformers' inputs for them."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stonechat_models.media.hf_processor import as_tensors
from stonechat_models.media.records import VideoOptions
from stonechat_models.media.video.decoding import decode_video
from stonechat_models.media.video.processor import VideoProcessor
from stonechat_models.types import MediaInput
from tests.models.media.prompts import Prompt, VisionModel
from tests.models.media.videos import RATE, all_frames
from tests.models.vision_models import ALL_FAMILIES, vision_tokenizer

GROUP, MERGE = 2, 2


@dataclass(frozen=True)
class VideoFamily:
    """How a family writes a video, and frames of which sizes its processor does not scale."""

    shown: str = "<|vision_start|><|video_pad|><|vision_end|>"
    placeholder: str = "<|video_pad|>"
    token: str = "<|video_pad|>"  # whose place embeddings take
    sizes: tuple[tuple[int, int], ...] = ((96, 64), (64, 64), (32, 96))
    settings: dict[str, Any] = field(
        default_factory=lambda: {
            "fps": 4,
            "size": {"shortest_edge": 784, "longest_edge": 10**6},
        }
    )


QWEN2 = VideoFamily(sizes=((84, 56), (56, 56), (28, 84)))
GLM = VideoFamily(
    "<|begin_of_video|><|video|><|end_of_video|>", "<|video|>", "<|image|>", QWEN2.sizes
)
VIDEO_FAMILIES = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen3_vl": VideoFamily(),
    "qwen3_vl_moe": VideoFamily(),
    "qwen3_5": VideoFamily(),
    "qwen3_5_moe": VideoFamily(),
    "gemma4": VideoFamily(
        *3 * ["<|video|>"], ((480, 336), (336, 480), (480, 336)), {"num_frames": 3}
    ),
    "smolvlm": VideoFamily(
        *("<video>", "<video>", "<image>", 3 * ((256, 256),)),
        {"video_sampling": {"fps": 4, "max_frames": 3, "video_size": {"longest_edge": 256}}},
    ),
    "glm4v": GLM,
    "glm4v_moe": GLM,
    "internvl": VideoFamily(
        "<video>\n", "<video>", "<IMG_CONTEXT>", 3 * ((224, 224),), {"num_frames": 3}
    ),
}


class VideoModel(VisionModel):
    """A family's tiny model in float32 that takes images and videos."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.settings = ALL_FAMILIES[name].image_processor
        self.tokenizer = vision_tokenizer(ALL_FAMILIES[name])
        self.name = name.removeprefix("compiled ")
        self.family = VIDEO_FAMILIES[self.name]
        write_video_settings(folder, self.name)
        template = folder / "chat_template.jinja"
        shown = "{% elif c.type == 'video' %}" + self.family.shown + "{% else %}{{ c.text }}"
        template.write_text(template.read_text().replace("{% else %}{{ c.text }}", shown))
        self.video_id: int = self.tokenizer.convert_tokens_to_ids(self.family.token)
        self.videos = VideoProcessor(folder, self.video_id)

    def video_prompt(self, text: str, *files: bytes) -> Prompt:
        """Return a prompt: `text`, where what the template writes for a video is each `@`."""
        choose = self.videos.chooser(VideoOptions())
        videos = [decode_video(file, VideoOptions(), choose) for file in files]
        prepared = [self.videos.prepare(video) for video in videos]
        parts = text.replace("@", self.family.shown).split(self.family.placeholder)
        whole = parts[0]
        for (replacement, _, _), part in zip(prepared, parts[1:], strict=True):
            whole += replacement + part
        token_ids = self.tokenizer(whole)["input_ids"]
        places = [i for i, token_id in enumerate(token_ids) if token_id == self.video_id]
        media, start = [], 0
        for file, (_, num_tokens, arrays) in zip(files, prepared, strict=True):
            for number, (length, piece) in enumerate(self.videos.cut(num_tokens, arrays)):
                assert places[start + length - 1] == places[start] + length - 1
                content = hashlib.blake2b(file + bytes([number]), digest_size=16).digest()
                place = (places[start], length)
                media.append(MediaInput(content, (place,), as_tensors(piece), "video"))
                start += length
        assert start == len(places)
        frames = [all_frames(file)[list(v.indices)] for file, v in zip(files, videos, strict=True)]
        inputs = self._inputs(frames)
        if self.name == "qwen2_5_vl":
            rates = [RATE * len(v.indices) / v.facts.num_frames for v in videos]
            inputs["second_per_grid_ts"] = torch.tensor([GROUP / rate for rate in rates])
        if self.name not in ("internvl", "smolvlm"):
            types = torch.tensor([[2 * (token_id == self.video_id) for token_id in token_ids]])
            inputs["mm_token_type_ids"] = types
        return Prompt(token_ids, tuple(media), inputs)

    def _inputs(self, videos: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Return the model's arguments by the published steps, for frames that are not scaled."""
        if self.name == "internvl":
            return {"pixel_values": torch.cat([self._pixels(frames) for frames in videos])}
        if self.name == "smolvlm":
            pixels = torch.cat([self._pixels(frames) for frames in videos])[None]
            mask = torch.ones(*pixels.shape[:2], *pixels.shape[3:], dtype=torch.int64)
            return {"pixel_values": pixels, "pixel_attention_mask": mask}
        if self.name == "gemma4":
            return self._soft_tokens(videos)
        patches, grids = zip(*[self._patches(frames) for frames in videos], strict=True)
        return {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}

    def _pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Return float32[n, 3, height, width], normalised."""
        defaults = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        mean, std = (
            torch.tensor((defaults | self.settings)[f"image_{key}"]) for key in ("mean", "std")
        )
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255
        return ((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).float()

    def _patches(self, frames: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        """Return the patches of Qwen's models, and the grid of them."""
        side = self.settings["patch_size"]
        pixels = self._pixels(frames)
        if len(pixels) % GROUP:
            pixels = torch.cat([pixels, pixels[-1:]])
        time, _, height, width = pixels.shape
        grid = [time // GROUP, height // side, width // side]
        rows, columns = grid[1] // MERGE, grid[2] // MERGE
        cut = pixels.view(grid[0], GROUP, 3, rows, MERGE, side, columns, MERGE, side)
        ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return ordered.reshape(-1, 3 * GROUP * side * side), grid

    def _soft_tokens(self, videos: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Return the patches of Gemma 4, as many as a frame may have, and where they are."""
        side, patches, positions = 16, [], []
        for frames in videos:
            pixels = self._pixels(frames)
            rows, columns = pixels.shape[-2] // side, pixels.shape[-1] // side
            cut = pixels.view(len(pixels), 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
            patches.append(cut.reshape(len(pixels), rows * columns, -1))
            places = [(x, y) for y in range(rows) for x in range(columns)]
            positions.append(torch.tensor(places).expand(len(pixels), -1, -1))
        return {
            "pixel_values_videos": torch.cat(patches),
            "video_position_ids": torch.cat(positions),
            "num_frames_per_video": torch.tensor([len(frames) for frames in videos]),
        }


def write_video_settings(folder: Path, name: str) -> None:
    """Write a family's settings for videos into a folder."""
    settings = json.dumps(VIDEO_FAMILIES[name].settings)
    (folder / "video_preprocessor_config.json").write_text(settings)
