"""Which of several video streams a clip is made of."""

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import Clip, read_clip
from packer.video.jpeg import decode_frames
from tests.support.programs import system_program
from tests.support.videos import number_picture, read_number, write_numbered_video

FILM = 100
"""Number of the film's first frame; other streams show smaller ones."""
NUM_FRAMES = 24


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([system_program("ffmpeg"), "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_numbered_video(tmp_path / "film.mp4", NUM_FRAMES, first_number=FILM, height_px=96, width_px=128)


def small(folder: Path, num_frames: int) -> Path:
    return write_numbered_video(folder / f"small_{num_frames}.mp4", num_frames)


def check_film(path: Path) -> Clip:
    clip = read_clip(path, ClipConfig(num_frames=5), DecodeLimits())
    numbers = [read_number(frame) for frame in decode_frames(clip.jpegs)]
    assert numbers == [FILM + index for index in clip.frame_indices]
    assert clip.num_frames == NUM_FRAMES
    assert clip == read_clip(path.read_bytes(), ClipConfig(num_frames=5), DecodeLimits())
    return clip


@pytest.mark.parametrize("extension", ["mkv", "ts", "mp4", "mov"])
@pytest.mark.parametrize("disposition", ["default", "0"])
def test_a_stream_of_one_frame_is_not_the_video(tmp_path: Path, film: Path, extension: str, disposition: str) -> None:
    path = tmp_path / f"two.{extension}"
    options = f"-map 0 -map 1 -c copy -disposition:v:0 {disposition}"
    ffmpeg("-i", small(tmp_path, 1), "-i", film, *options.split(), path)
    check_film(path)


@pytest.mark.parametrize("extension", ["mkv", "mp4", "mov"])
def test_a_stream_that_is_switched_off_is_not_the_video(tmp_path: Path, film: Path, extension: str) -> None:
    path = tmp_path / f"two.{extension}"
    options = "-map 0 -map 1 -c copy -disposition:v:0 0 -disposition:v:1 default"
    ffmpeg("-i", small(tmp_path, 5), "-i", film, *options.split(), path)
    check_film(path)


def test_of_equal_streams_the_larger_is_the_video(tmp_path: Path, film: Path) -> None:
    path = tmp_path / "two.ts"
    options = "-map 0 -map 1 -c copy"
    ffmpeg("-i", small(tmp_path, NUM_FRAMES), "-i", film, *options.split(), path)
    check_film(path)


def test_the_default_stream_goes_before_a_larger_one(tmp_path: Path, film: Path) -> None:
    path = tmp_path / "two.mkv"
    options = "-map 0 -map 1 -c copy -disposition:v:0 0 -disposition:v:1 default"
    large = write_numbered_video(tmp_path / "large.mp4", NUM_FRAMES, height_px=192, width_px=256)
    ffmpeg("-i", large, "-i", film, *options.split(), path)
    check_film(path)


@pytest.mark.parametrize("kind", ["attached_pic", "timed_thumbnails"])
def test_covers_and_thumbnails_are_not_the_video(tmp_path: Path, film: Path, kind: str) -> None:
    cover = tmp_path / "cover.png"
    Image.fromarray(number_picture(3, 256, 256)).save(cover)
    path = tmp_path / "film_with_cover.mp4"
    options = f"-map 0 -map 1 -c:v:0 png -c:v:1 copy -disposition:v:0 {kind}"
    ffmpeg("-i", cover, "-i", film, *options.split(), path)
    check_film(path)


def test_the_film_of_an_avif_sequence_is_the_video(tmp_path: Path) -> None:
    path = tmp_path / "sequence.avif"
    first, *others = (Image.fromarray(number_picture(number)) for number in range(10))
    first.save(path, save_all=True, append_images=others, duration=100)
    with av.open(str(path)) as container:
        assert [stream.frames for stream in container.streams.video] == [1, 10]
    clip = read_clip(path, ClipConfig(num_frames=10), DecodeLimits())
    assert clip.num_frames == 10
    assert [read_number(frame) for frame in decode_frames(clip.jpegs)] == list(range(10))


def test_the_ffmpeg_program_chooses_the_same_stream(test_data: Path) -> None:
    path = test_data / "zoo/torchcodec/nasa_13013.mp4"
    clip = read_clip(path, ClipConfig(num_frames=1, short_side_px=0), DecodeLimits())
    command = [system_program("ffmpeg"), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-vf", rf"select=eq(n\,{clip.frame_indices[0]})", "-frames:v", "1", "-"]
    pixels = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8)
    assert np.abs(decode_frames(clip.jpegs)[0].astype(int).ravel() - pixels).mean() < 3
