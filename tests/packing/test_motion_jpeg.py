"""A file of JPEGs is a video, a photo is none, whatever the size of its first picture."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.pack import ClipConfig, DecodeLimits
from packer.video.catalog import find_videos
from packer.video.clip import read_clip
from packer.video.container import VideoError
from packer.video.jpeg import decode_frames
from tests.support.videos import number_picture, read_number


def jpeg(number: int, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(number_picture(number, 96, 128)).save(data, "JPEG", **options)
    return data.getvalue()


def padded(data: bytes, num_bytes: int) -> bytes:
    """A JPEG with a comment that makes it `num_bytes` longer."""
    return data[:2] + b"\xff\xfe" + (num_bytes - 2).to_bytes(2, "big") + b"x" * (num_bytes - 4) + data[2:]


@pytest.mark.parametrize("num_bytes", [*range(4, 120, 9), 600, 5_000, 60_000])
def test_raw_motion_jpeg_is_a_video(num_bytes: int) -> None:
    pictures = [padded(jpeg(0), num_bytes), *(jpeg(number) for number in range(1, 9))]
    clip = read_clip(b"".join(pictures), ClipConfig(num_frames=9), DecodeLimits())
    assert [read_number(frame) for frame in decode_frames(clip.jpegs)] == list(range(9))


def test_progressive_pictures_and_padding_between_them() -> None:
    data = b"".join(jpeg(number, progressive=True) + bytes(number) for number in range(6))
    assert read_clip(data, ClipConfig(), DecodeLimits()).num_frames == 6


def photo_with_preview() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    whole = Image.fromarray(number_picture(3, 480, 640))
    data = io.BytesIO()
    whole.save(data, "JPEG", exif=exif.tobytes() + jpeg(3))
    return data.getvalue()


def photo_of_two_pictures() -> bytes:
    data = io.BytesIO()
    first, second = (Image.fromarray(number_picture(number, 96, 128)) for number in (1, 2))
    first.save(data, "MPO", save_all=True, append_images=[second])
    return data.getvalue()


PHOTOS = {
    "plain": jpeg(7),
    "padded": padded(jpeg(7), 5_000),
    "preview": photo_with_preview(),
    "two pictures": photo_of_two_pictures(),
    "trailer": jpeg(7) + b"a maker's notes \xff\xd8\xff",
    "cut": jpeg(7)[:-40],
}


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_a_photo_is_no_video(tmp_path: Path, photo: bytes) -> None:
    with pytest.raises(VideoError, match="the file is a picture") as caught:
        read_clip(photo, ClipConfig(), DecodeLimits())
    assert caught.value.reason == "not_a_video"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/photo.mp4").write_bytes(photo)
    (tmp_path / "a/video.mjpeg").write_bytes(jpeg(1) + jpeg(2))
    catalog = find_videos(tmp_path)
    assert [video.source for video in catalog.videos] == ["a/video.mjpeg"]
    assert [video.source for video, _ in catalog.non_videos] == ["a/photo.mp4"]


def test_noise_between_the_markers_is_no_end_of_a_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG", quality=100)
    with pytest.raises(VideoError, match="the file is a picture"):
        read_clip(data.getvalue(), ClipConfig(), DecodeLimits())
    assert read_clip(data.getvalue() * 3, ClipConfig(), DecodeLimits()).num_frames == 3
