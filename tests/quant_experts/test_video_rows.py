"""Rows with videos: what is refused without a video processor, and what the model is shown where there is one."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.errors import InvalidCalibration
from quant_experts.spec.limits import MOST_FRAMES
from tests.models import make_model
from tests.models_video import SETTINGS, make_video_model
from tests.planning.video_tokens import CLIPS
from tests.rows import data_uri, picture, video_row

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None


def changed(**entries: Any) -> dict[str, Any]:
    row = video_row(0)
    row["messages"][0]["content"][0].update(entries)
    return row


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"video": "clip.mp4"}, "a video is the list of its frames, as images: a video file is not decoded here"),
        ({"video": []}, "video 1: a video part without frames"),
        ({"video": [data_uri(picture())] * (MOST_FRAMES + 1)}, "video 1: 769 frames, at most 768"),
        ({"fps": 0}, "video 1: fps is 0"),
        ({"fps": True}, "video 1: fps is True"),
        ({"video": ["http://host/frame.png"]}, "video 1, frame 1: .* is a URL"),
    ],
)
def test_a_video_that_cannot_be_used_is_named(entries: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidCalibration, match=f"calibration row 3[,:].*{reason}"):
        parse_row(3, changed(**entries), tmp_path)


def test_frames_are_read_beside_the_file_and_change_the_fingerprint(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(seed=number))
    row = parse_row(1, changed(video=["0.png", "1.png"]), tmp_path)
    assert [frame for video in row.videos for frame in video.frames] == [picture(seed=0), picture(seed=1)]
    assert row.messages[0]["content"][0] == {"type": "video"}
    others = (changed(video=["1.png", "0.png"]), changed(video=["0.png", "1.png"], fps=3))
    assert len({row.digest, *(parse_row(1, other, tmp_path).digest for other in others)}) == 3


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is installed")
def test_without_torchvision_a_video_is_refused_by_the_name_of_what_is_missing(tmp_path: Path) -> None:
    collate = open_collator(make_video_model("qwen2_vl", tmp_path), AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(InvalidCalibration, match="the video processor of Qwen2VLProcessor needs torchvision"):
        collate(parse_row(1, video_row(0), tmp_path))


def test_a_model_without_a_video_processor_says_so(tmp_path: Path) -> None:
    collate = open_collator(make_model("gemma3", tmp_path), AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(InvalidCalibration, match="it has a video, but Gemma3Processor takes none"):
        collate(parse_row(1, video_row(0), tmp_path))


@pytest.mark.skipif(not HAS_TORCHVISION, reason="video processors need torchvision")
@pytest.mark.parametrize("family", SETTINGS)
def test_the_model_is_shown_what_transformers_makes_of_the_same_frames(family: str, tmp_path: Path) -> None:
    collate = open_collator(make_video_model(family, tmp_path), AutoConfig.from_pretrained(tmp_path))
    processor = AutoProcessor.from_pretrained(tmp_path)
    for frames, size, fps in CLIPS[1:]:
        row = parse_row(1, video_row(0, frames=frames, size=size, fps=fps), tmp_path)
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in row.videos[0].frames]
        user, assistant = (dict(message) for message in row.messages)
        user["content"] = [{"type": "video", "video": pictures}, *user["content"][1:]]
        metadata = {"total_num_frames": frames, "fps": fps, "frames_indices": list(range(frames))}
        theirs = processor.apply_chat_template(
            [user, assistant],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"do_sample_frames": False, "video_metadata": [metadata]},
        )
        ours = collate(row)
        assert theirs.keys() == ours.inputs.keys()
        assert all(torch.equal(torch.as_tensor(theirs[name]), ours.inputs[name]) for name in theirs)
        assert int(ours.vision.sum()) > 1


@pytest.mark.skipif(not HAS_TORCHVISION, reason="video processors need torchvision")
def test_frames_of_two_sizes_are_refused_and_a_long_video_gets_smaller_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = open_collator(make_video_model("qwen2_vl", tmp_path), AutoConfig.from_pretrained(tmp_path))
    frames = [data_uri(picture(size=size)) for size in ((84, 84), (84, 56))]
    with pytest.raises(InvalidCalibration, match="video 1: frames 1 and 2 are 84x84 and 84x56"):
        collate(parse_row(1, changed(video=frames), tmp_path))
    monkeypatch.setattr("quant_experts.calibration.collate.MOST_TOKENS", 60)
    small = open_collator(tmp_path, AutoConfig.from_pretrained(tmp_path))
    sample = small(parse_row(1, video_row(0, frames=8, size=(112, 112)), tmp_path))
    assert sample.resized
    assert sample.tokens <= 60
