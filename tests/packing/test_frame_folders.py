"""Folders of numbered pictures are videos: which pictures, in which order, to which pixels, and in every command."""

import os
import random
import shutil
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image

from configs.pack import ClipConfig, DecodeLimits
from packer.shards.manifest import read_manifest, read_samples
from packer.storage.location import Entry
from packer.video.catalog import find_unlabelled, find_videos
from packer.video.clip import Clip, read_clip
from packer.video.container import VideoError
from packer.video.frame_folder import FrameFolder, numbered_pictures, open_frame_folder
from packer.video.jpeg import decode_frames
from packer.video.sampling import frame_indices
from tests.support.packs import assert_same_pack, run
from tests.support.s3 import put_folder
from tests.support.videos import number_picture, read_number, write_numbered_video

FAST = ["--clip.num-frames=4", "--workers=1"]
HIGHEST = {"quality": 95, "subsampling": 0}


def write_frames(
    folder: Path, numbers: Sequence[int], name: str = "img_{:05d}.jpg", first_number: int = 0, side_px: int = 64
) -> Path:
    """Writes pictures of which each shows its number in the name, plus `first_number`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / name.format(number)
        options = HIGHEST if path.suffix.lower() != ".png" else {}
        Image.fromarray(number_picture(first_number + number, side_px, side_px)).save(path, **options)
    return folder


def clip_of(folder: Path, decode: str = "auto", **options: object) -> Clip:
    config = ClipConfig.model_validate({"decode": decode, **options})
    return read_clip(f"{folder}/", config, DecodeLimits())


def shown(clip: Clip) -> list[int]:
    return [read_number(frame) for frame in decode_frames(clip.jpegs)]


def series(*names: str) -> FrameFolder | None:
    return numbered_pictures(Path("folder"), [Entry(name, f"folder/{name}", "file", 7) for name in names])


def names_of(folder: FrameFolder | None) -> list[str]:
    assert folder is not None
    return [file.name for file in folder.files]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["frame10.png", "frame2.png", "frame1.png"], ["frame1.png", "frame2.png", "frame10.png"]),
        (["00002.jpg", "00001.JPG", "00003.jpeg"], ["00001.JPG", "00002.jpg", "00003.jpeg"]),
        (["v1_frame_2_rgb.jpg", "v1_frame_1_rgb.jpg"], ["v1_frame_1_rgb.jpg", "v1_frame_2_rgb.jpg"]),
        (["img_1.jpg", "img_01.jpg", "img_0.jpg"], ["img_0.jpg", "img_01.jpg", "img_1.jpg"]),
        (["img_1.jpg", "img_2.jpg", "flow_x_1.jpg", "flow_x_2.jpg", "flow_x_3.jpg"], ["img_1.jpg", "img_2.jpg"]),
        (["img_1.jpg", "img_2.jpg", "x_1.jpg", "x_2.jpg", "x_3.jpg"], ["img_1.jpg", "img_2.jpg"]),
        (["b_1.jpg", "b_2.jpg", "a_1.jpg", "a_2.jpg", "c_1.jpg"], ["a_1.jpg", "a_2.jpg"]),
        (["x1.png", "x2.png"], ["x1.png", "x2.png"]),
        (["cover.jpg", "notes1.txt", "img_4.png", "img_3.png"], ["img_3.png", "img_4.png"]),
    ],
)
def test_the_frames_of_a_folder(names: list[str], wanted: list[str]) -> None:
    for order in (names, names[::-1]):
        assert names_of(series(*order)) == wanted


@pytest.mark.parametrize(
    "names", [[], ["a.jpg", "b.jpg"], ["img_1.jpg"], ["img_1.jpg", "pic_2.jpg"], ["1.gif", "2.gif"]]
)
def test_other_folders_hold_no_frames(names: list[str]) -> None:
    assert series(*names) is None


@pytest.mark.parametrize(
    ("names", "num_expected"),
    [
        (["1.jpg", "2.jpg", "3.jpg"], 3),
        (["0.jpg", "1.jpg", "4.jpg"], 5),
        (["5.jpg", "10.jpg", "15.jpg", "30.jpg"], 6),
        (["7.jpg", "07.jpg"], 1),
        (["1700000000000.jpg", "1700000000040.jpg"], 0),
    ],
)
def test_gaps_are_counted_in_the_folders_own_step(names: list[str], num_expected: int) -> None:
    folder = series(*names)
    assert folder is not None
    assert folder.num_expected == num_expected


@pytest.mark.parametrize("name", ["img_{:05d}.jpg", "{}.png", "frame{:06d}.JPEG"])
@pytest.mark.parametrize("numbers", [range(1, 25), range(2), range(95, 130)])
def test_the_right_frames_on_both_paths(tmp_path: Path, name: str, numbers: range) -> None:
    folder = write_frames(tmp_path / "clip", numbers, name)
    auto, full = clip_of(folder), clip_of(folder, "full")
    assert (auto.decode_road, full.decode_road) == ("needed", "full")
    assert auto.jpegs == full.jpegs
    assert shown(auto) == [numbers[index] for index in frame_indices(len(numbers), 16)]
    assert auto.num_frames == auto.num_frames_claimed == len(numbers)
    assert (auto.fps, auto.duration_seconds, auto.damage, auto.num_bad_packets) == (0, 0, (), 0)
    assert read_clip(folder, ClipConfig(), DecodeLimits()) == auto


def as_stored(pixels: NDArray[np.uint8], height_px: int, width_px: int) -> bytes:
    """Resizes and compresses the pixels of a picture, independently of the packer."""
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        width=width_px,
        height=height_px,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
    )
    planes = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes]
    return bytes(simplejpeg.encode_jpeg_yuv_planes(*(np.ascontiguousarray(plane) for plane in planes), quality=90))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("size", "stored"), [((240, 320), (128, 170)), ((90, 120), (90, 120)), ((301, 200), (192, 128))]
)
def test_the_pixels_are_those_of_the_pictures(
    tmp_path: Path, suffix: str, size: tuple[int, int], stored: tuple[int, int]
) -> None:
    generator = np.random.default_rng(3)
    for number in range(4):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size[::-1]).save(tmp_path / f"{number}.{suffix}")
    clip = clip_of(tmp_path, num_frames=4)
    assert (clip.height_px, clip.width_px) == stored
    assert (clip.source_height_px, clip.source_width_px) == size
    for number, jpeg in enumerate(clip.jpegs):
        with Image.open(tmp_path / f"{number}.{suffix}") as picture:
            assert as_stored(np.asarray(picture.convert("RGB")), *stored) == jpeg


def test_every_kind_of_picture_is_shown_as_by_a_viewer(tmp_path: Path) -> None:
    left_red = np.zeros((64, 64, 3), np.uint8)
    left_red[:, :32, 0] = 255
    upright = Image.fromarray(left_red)
    grey = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    kinds: dict[str, tuple[str, Image.Image]] = {
        "palette": ("png", upright.convert("P")),
        "alpha": ("png", upright.convert("RGBA")),
        "cmyk": ("jpg", upright.convert("CMYK")),
        "grey": ("png", grey),
        "turned": ("jpg", upright.transpose(Image.Transpose.ROTATE_90)),
    }
    for kind, (suffix, picture) in kinds.items():
        exif = Image.Exif()
        if kind == "turned":
            exif[0x0112] = 6  # to be turned clockwise
        (tmp_path / kind).mkdir()
        for number in range(2):
            picture.save(tmp_path / kind / f"{number}.{suffix}", exif=exif)
        frame = decode_frames(clip_of(tmp_path / kind).jpegs)[0].astype(int)
        if kind == "grey":
            assert np.abs(frame - 128).max() <= 1
        else:
            assert np.abs(frame[8:-8, 8:24] - (254, 0, 0)).max() < 25, kind
            assert frame[8:-8, 40:56].max() < 25, kind


def test_only_the_wanted_pictures_are_read(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", range(3000), side_px=16)
    for index in set(range(3000)) - set(frame_indices(3000, 16)):
        (folder / f"img_{index:05d}.jpg").write_bytes(b"no picture")
    clip = clip_of(folder)
    assert (clip.num_frames, clip.num_bad_packets, clip.decode_road) == (3000, 0, "needed")


def test_a_folder_of_30000_pictures_takes_neither_time_nor_memory(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a" / "long", [0], "{}.jpg")
    for number in range(1, 30_000):
        os.link(folder / "0.jpg", folder / f"{number}.jpg")
    tracemalloc.start()
    started = time.process_time()
    clip = clip_of(folder)
    seconds, peak_bytes = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.num_frames == 30_000
    assert peak_bytes < 64 * 2**20
    assert seconds < 10


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: bytes(500)])
@pytest.mark.parametrize("name", ["{}.jpg", "{}.png"])
def test_a_damaged_picture_is_skipped_and_counted(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    folder = write_frames(tmp_path / "clip", range(20), name)
    for number in (0, 7):
        path = folder / name.format(number)
        path.write_bytes(damage(path.read_bytes()))
    auto, full = clip_of(folder), clip_of(folder, "full")
    assert auto == full
    assert (auto.num_frames, auto.num_frames_claimed, auto.num_bad_packets) == (18, 20, 2)
    assert auto.damage == ("bad_packets",)
    whole = [number for number in range(20) if number not in (0, 7)]
    assert shown(auto) == [whole[index] for index in auto.frame_indices]


def test_the_limits_are_set_once_before_the_first_whole_picture(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", range(5))
    (folder / "img_00000.jpg").write_bytes(b"")
    calls: list[int] = []
    read_clip(folder, ClipConfig(), DecodeLimits(), calls.append)
    assert calls == [64 * 64]


def test_a_folder_without_a_whole_picture_is_undecodable(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(VideoError, match="not one picture of the folder can be decoded") as raised:
        clip_of(tmp_path)
    assert raised.value.reason == "undecodable"


def test_mutated_pictures_end_in_a_clip_or_a_reason(tmp_path: Path) -> None:
    shuffle = random.Random(5)
    for name in ("{}.jpg", "{}.png"):
        folder = write_frames(tmp_path / name[3:], range(3), name)
        whole = (folder / name.format(1)).read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(shuffle.randint(1, 8)):
                data[shuffle.randrange(len(data))] = shuffle.randrange(256)
            (folder / name.format(1)).write_bytes(data)
            assert clip_of(folder).num_frames in (2, 3)


def test_missing_numbers_are_recorded(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", [*range(1, 10), *range(20, 25)])
    clip = clip_of(folder)
    assert (clip.num_frames, clip.num_frames_claimed, clip.damage) == (14, 24, ("missing_frames",))
    one_gone = write_frames(tmp_path / "one", [*range(1, 12), *range(13, 25)])
    assert (clip_of(one_gone).num_frames_claimed, clip_of(one_gone).damage) == (24, ())


def test_by_time_the_numbers_are_the_clock(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", [0, 1, 2, 3, 30])
    clip = clip_of(folder, num_frames=4, sampling="time")
    assert (clip.sampled_by, shown(clip)) == ("time", [0, 3, 3, 30])


def test_pictures_of_another_size_stand_between_bars(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", range(8))
    for number in (0, 5):
        Image.new("RGB", (160, 90), "white").save(folder / f"img_{number:05d}.jpg")
    clip = clip_of(folder, num_frames=8)
    assert (clip.height_px, clip.width_px, clip.num_source_sizes) == (64, 64, 2)
    frames = decode_frames(clip.jpegs)
    assert [read_number(frame) for frame in frames[[1, 2, 7]]] == [1, 2, 7]
    assert frames[0][:12].max() < 10
    assert frames[0][24:40].min() > 240


def test_limits_hold_for_pictures(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", range(5))
    for limits in (DecodeLimits(max_pixels=64 * 63), DecodeLimits(max_frames=4)):
        with pytest.raises(VideoError) as raised:
            read_clip(folder, ClipConfig(), limits)
        assert raised.value.reason == "too_large"
    Image.new("1", (30_000, 30_000)).save(folder / "img_00000.png")
    Image.new("1", (30_000, 30_000)).save(folder / "img_00001.png")
    for path in folder.glob("*.jpg"):
        path.unlink()
    with pytest.raises(VideoError, match="a picture has more than") as raised:
        read_clip(folder, ClipConfig(), DecodeLimits())
    assert raised.value.reason == "too_large"


def test_the_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    one = write_frames(tmp_path / "one", range(6))
    copy = shutil.copytree(one, tmp_path / "copy")
    assert clip_of(one).source_sha256 == clip_of(copy).source_sha256
    renamed = shutil.copytree(one, tmp_path / "renamed")
    (renamed / "img_00005.jpg").rename(renamed / "img_00006.jpg")
    other = shutil.copytree(one, tmp_path / "other")
    data = bytearray((other / "img_00003.jpg").read_bytes())
    data[-3] ^= 1
    (other / "img_00003.jpg").write_bytes(data)
    longer = write_frames(shutil.copytree(one, tmp_path / "longer"), [6])
    digests = {clip_of(folder).source_sha256 for folder in (one, renamed, other, longer)}
    assert len(digests) == 4


def test_a_folder_that_is_gone_or_empty_has_a_reason(tmp_path: Path) -> None:
    for folder, reason in ((tmp_path / "gone", "unreadable"), (tmp_path, "not_a_video")):
        with pytest.raises(VideoError) as raised:
            read_clip(f"{folder}/", ClipConfig(), DecodeLimits())
        assert raised.value.reason == reason
    assert open_frame_folder(tmp_path) is None


def test_the_catalog_knows_clips_thumbnails_and_pictures_apart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    frames = write_frames(data / "wave" / "clip", range(4))
    write_frames(frames, range(4), "flow_x_{:05d}.jpg")
    (frames / "Thumbs.db").write_bytes(bytes(100))
    (frames / "fps.txt").write_text("25")
    write_frames(data / "wave" / "site" / "deep.v2", range(2), "{}.png")
    write_frames(data / "wave", range(2), "photo{}.jpg")  # the class folder itself is no clip
    (data / "clap").mkdir()
    for number in range(2):
        write_numbered_video(data / "clap" / f"v{number}.mp4", 3)
    write_frames(data / "clap" / "videos", [0, 1], "v{}.jpg")
    shutil.copy(data / "clap" / "v0.mp4", data / "clap" / "videos" / "v0.bin")
    write_frames(data / "clap" / "one", [7])
    catalog = find_videos(data)
    assert [video.source for video in catalog.videos] == [
        "clap/v0.mp4",
        "clap/v1.mp4",
        "clap/videos/v0.bin",
        "wave/clip",
        "wave/site/deep.v2",
    ]
    folder = catalog.videos[3]
    assert (folder.is_frame_folder, folder.path) == (True, f"{frames}/")
    assert folder.num_bytes == sum(path.stat().st_size for path in frames.glob("img_*"))
    assert folder.key.startswith("wave-clip-")
    assert sorted(video.source for video, _ in catalog.non_videos) == [
        "clap/one/img_00007.jpg",
        "clap/videos/v0.jpg",
        "clap/videos/v1.jpg",
        "wave/photo0.jpg",
        "wave/photo1.jpg",
    ]
    assert catalog.num_skipped == {"file beside the numbered pictures of a clip": 6}
    assert "wave/clip" in {video.source for video in find_unlabelled(data).videos}


def dataset(folder: Path) -> Path:
    """Writes two classes of five frame folders and one video, as HMDB51 rawframes beside a video."""
    for class_number, class_name in enumerate(("clap", "wave")):
        for number in range(5):
            first = 100 * (5 * class_number + number)
            write_frames(folder / class_name / f"v_{number}", range(1, 13), first_number=first)
        write_numbered_video(folder / class_name / "extra.mp4", 8, first_number=2000 + 100 * class_number)
    return folder


def test_every_command_takes_frame_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, shards = dataset(tmp_path / "data"), tmp_path / "shards"
    assert run(data, shards, *FAST) == 0
    assert run(data, tmp_path / "two", *FAST[:-1], "--workers=2") == 0
    assert_same_pack(shards, tmp_path / "two")
    assert run("verify", shards) == 0
    rows = [row for split in ("train", "val", "test") for row in read_samples(shards, split).to_pylist()]
    assert {row["source"] for row in rows} >= {"clap/v_0", "wave/v_4", "wave/extra.mp4"}
    assert all(row["frame_indices"] == list(frame_indices(12, 4)) for row in rows if "extra" not in row["source"])
    capsys.readouterr()
    assert run("inspect", shards, "--sheet", tmp_path / "sheet.html") == 0
    assert "12 to 12 in a video" not in capsys.readouterr().out
    before = (shards / "train-000000.tar").read_bytes()
    (shards / "train-000000.tar").write_bytes(before[:-2000])
    assert run("repair", shards, data) == 0
    assert (shards / "train-000000.tar").read_bytes() == before
    write_frames(data / "wave" / "v_new", range(1, 9), first_number=5000)
    assert run(data, shards, *FAST, "--append") == 0
    assert read_manifest(shards).num_videos == 13
    assert (shards / "train-000000.tar").read_bytes() == before
    assert run("verify", shards) == 0


def test_copies_of_a_folder_are_duplicates(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    shutil.copytree(data / "wave" / "v_1", data / "wave" / "v_1 (copy)")
    assert run(data, tmp_path / "shards", *FAST, "--duplicates=reject") == 0
    assert read_manifest(tmp_path / "shards").rejected == {"duplicate": 1}


def test_official_lists_name_frame_folders_too(tmp_path: Path) -> None:
    data, lists = tmp_path / "data", tmp_path / "lists"
    lists.mkdir()
    names: dict[str, list[str]] = {"train": [], "test": []}
    for class_number, class_name in enumerate(("Archery", "Biking")):
        for group in range(1, 7):
            name = f"v_{class_name}_g{group:02d}_c01"
            write_frames(data / class_name / name, range(1, 5), first_number=100 * (10 * class_number + group))
            names["train" if group > 2 else "test"].append(f"{class_name}/{name}.avi")
    for split, found in names.items():
        (lists / f"{split}list01.txt").write_text("\n".join(found))
    assert run(data, tmp_path / "shards", *FAST, "--split.ucf101=1", "--lists", lists) == 0
    assert read_manifest(tmp_path / "shards").splits["test"].num_samples == 4


@pytest.mark.integration
def test_at_an_address_the_bytes_are_those_of_a_local_pack(bucket: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for first, class_name in ((0, "clap"), (1000, "wave")):
        for number in range(3):
            write_frames(data / class_name / f"v_{number}", range(1, 4), first_number=first + 10 * number)
    write_frames(data / "wave" / "long # [1]*", range(40), first_number=7000)
    assert run(data, tmp_path / "local", *FAST) == 0
    put_folder(data, f"{bucket}/frames")
    assert run(f"{bucket}/frames", tmp_path / "from_s3", *FAST) == 0
    assert_same_pack(tmp_path / "local", tmp_path / "from_s3")
