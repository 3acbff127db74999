"""`--clip.sampling time`: the frames on screen at equally spaced times, on both decode paths, packed and served."""

import contextlib
import json
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest

from configs.pack import ClipConfig, DecodeLimits, PackRecipe
from configs.train import ViewConfig
from packer.decoders.pool import DecodePool
from packer.shards.manifest import Manifest, read_manifest, read_samples
from packer.video.clip import Clip, read_clip
from packer.video.container import VideoError
from packer.video.jpeg import decode_frames
from packer.video.sampling import SAMPLING_RULES, time_indices
from serve.replica.predictor import ModelView
from tests.support.packs import run
from tests.support.videos import full_decode, number_picture, read_number, write_numbered_video
from trainer.model.contract import ModelContract

BY_TIME = ClipConfig(sampling="time")
MOTION_MS = [*range(0, 2000, 40), *range(5000, 65_000, 6000)]
"""A motion-triggered recording: 2 s of 25 frames a second, then one frame every 6 s for a minute."""


def write_timed(path: Path, times_ms: Sequence[int], codec: str, **options: str) -> Path:
    """Writes a video whose frame i shows i at the i-th time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height = stream.width = 64
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(number_picture(number), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown_at(times: Sequence[Fraction | int], num_frames: int) -> tuple[int, ...]:
    """Computes the rule anew, in fractions: which frame is on screen at each of the equally spaced times."""
    first, last = Fraction(times[0]), Fraction(times[-1])
    steps = [Fraction(1, 2)] if num_frames == 1 else [Fraction(i, num_frames - 1) for i in range(num_frames)]
    return tuple(max(j for j, time in enumerate(times) if time <= first + step * (last - first)) for step in steps)


def both_paths(source: Path | bytes, num_frames: int = 16) -> Clip:
    auto, full = (
        read_clip(source, BY_TIME.model_copy(update={"num_frames": num_frames, "decode": path}), DecodeLimits())
        for path in ("auto", "full")
    )
    assert full.decode_road == "full"
    assert (auto.frame_indices, auto.jpegs, auto.sampled_by) == (full.frame_indices, full.jpegs, full.sampled_by)
    return auto


def test_examples_of_the_rule() -> None:
    assert time_indices((0, 1, 2, 3, 30), 4) == (0, 3, 3, 4)
    assert time_indices((0, 1, 2, 3, 30), 1) == (3,)
    assert time_indices((5,), 3) == (0, 0, 0)
    assert time_indices((0, 0, 10, 10), 2) == (1, 3)  # of frames at one time, the last stays on screen
    for times, num_frames in (((), 1), ((1, 2), 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            time_indices(times, num_frames)


def test_the_rule_is_exact() -> None:
    gaps = (1, 40, 0, 7, 3000, 1, 1, 0, 10**12, 3)
    for start in (-90_000, 0, 2**33):
        times = [start + sum(gaps[:number]) for number in range(len(gaps) + 1)]
        for length in range(2, len(times) + 1):
            for num_frames in (1, 2, 3, 7, 16, 1000):
                assert time_indices(times[:length], num_frames) == shown_at(times[:length], num_frames)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "libx264", {"bf": "0"}),
        ("b_frames.mp4", "libx264", {"bf": "3", "g": "12"}),
        ("b_frames.mkv", "libx264", {"bf": "3", "g": "12"}),
        ("b_frames.ts", "libx264", {"bf": "2"}),
        ("h265.mp4", "libx265", {"x265-params": "log-level=none:frame-threads=1:qp=10"}),
        ("web.webm", "libvpx-vp9", {"deadline": "realtime"}),
        ("camera.mov", "mjpeg", {}),
        ("web.flv", "flv", {}),
        ("loop.gif", "gif", {}),
    ],
)
@pytest.mark.parametrize("num_frames", [1, 16])
def test_frames_of_a_varying_rate(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], num_frames: int
) -> None:
    clip = both_paths(write_timed(tmp_path / name, MOTION_MS, codec, **options), num_frames)
    assert clip.sampled_by == "time"
    assert clip.frame_indices == shown_at(MOTION_MS, num_frames)
    assert tuple(read_number(frame) for frame in decode_frames(clip.jpegs)) == clip.frame_indices


def test_most_of_a_motion_triggered_recording_is_seen(tmp_path: Path) -> None:
    path = write_timed(tmp_path / "camera.mp4", MOTION_MS, "libx264")
    by_frames, by_time = (read_clip(path, ClipConfig(sampling=rule), DecodeLimits()) for rule in ("frames", "time"))
    assert sum(MOTION_MS[index] > 2000 for index in by_frames.frame_indices) == 3
    assert sum(MOTION_MS[index] > 2000 for index in by_time.frame_indices) == 14
    assert by_time.decode_road == by_frames.decode_road == "needed"
    assert by_frames.sampled_by == "index"


def test_an_avi_leaves_empty_pieces_where_no_frame_is_due(tmp_path: Path) -> None:
    times_ms = [*range(0, 400, 40), *range(2000, 8000, 1000)]
    for codec in ("mpeg4", "mjpeg"):
        clip = both_paths(write_timed(tmp_path / f"{codec}.avi", times_ms, codec))
        assert (clip.sampled_by, clip.frame_indices) == ("time", shown_at(times_ms, 16))
        assert clip.num_frames < clip.num_frames_claimed / 2
        assert clip.damage == ()  # nothing is missing: the container counts the empty pieces as frames


def test_frames_without_times_count_as_equally_spaced(tmp_path: Path) -> None:
    clip = both_paths(write_numbered_video(tmp_path / "raw.h264", 40))
    assert (clip.sampled_by, clip.frame_indices) == ("rate", shown_at(range(40), 16))


def test_a_clock_that_jumps_back_does_not_count(tmp_path: Path) -> None:
    once = write_numbered_video(tmp_path / "once.ts", 30, codec="mpeg2video").read_bytes()
    clip = both_paths(once + once)
    assert (clip.sampled_by, clip.frame_indices) == ("rate", shown_at(range(clip.num_frames), 16))


def test_real_videos_by_time_equal_a_full_decode(test_data: Path) -> None:
    num_timed = 0
    folders = [test_data / name for name in ("zoo/made", "zoo/torchcodec", "known")]
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        with contextlib.suppress(av.FFmpegError, IndexError, VideoError, OSError):
            pts = [frame.pts for frame in full_decode(path)]
            clip = both_paths(path)
            times = [time for time in pts if time is not None]
            if len(times) < len(pts) or times != sorted(times) or times[0] == times[-1]:
                times = list(range(len(pts)))  # no times that rise; an AVI whose own times fall has one rate
            targets = [times[0] + Fraction(i * (times[-1] - times[0]), 15) for i in range(16)]
            wanted = tuple(bisect_right(times, target) - 1 for target in targets)
            assert clip.num_frames == len(pts)
            assert clip.frame_indices == wanted, path.name
            num_timed += clip.sampled_by == "time"
    assert num_timed > 60


def test_a_pack_says_how_its_frames_were_chosen(tmp_path: Path) -> None:
    for class_name in ("a", "b"):
        (tmp_path / "data" / class_name).mkdir(parents=True)
        for number in range(4):
            times_ms = [*MOTION_MS, 70_000 + 10 * number + (class_name == "b")]
            write_timed(tmp_path / "data" / class_name / f"{number}.mp4", times_ms, "libx264")
    options = ["--clip.num-frames=8", "--workers=1"]
    shards = {rule: tmp_path / rule for rule in ("frames", "time")}
    for rule, target in shards.items():
        assert run(tmp_path / "data", target, *options, f"--clip.sampling={rule}") == 0
        manifest = read_manifest(target)
        assert (manifest.clip.sampling, manifest.sampling_rule) == (rule, SAMPLING_RULES[rule])
        how = {"frames": "index", "time": "time"}[rule]
        assert read_samples(target, "train", ["sampled_by"])["sampled_by"].to_pylist() == [how] * 4
        with tarfile.open(target / "train-000000.tar") as tar:
            member = tar.extractfile(next(name for name in tar.getnames() if name.endswith(".json")))
            assert member is not None
            assert json.loads(member.read()).get("sampled_by", "index") == how
    assert served_equals_packed(tmp_path / "data", shards["time"]) == 4


def served_equals_packed(data: Path, shards: Path) -> int:
    """Compares what a server makes of the videos' bytes, by the contract of a model, with a pack's train split."""
    manifest = read_manifest(shards)
    contract = ModelContract(
        class_names=manifest.class_names,
        clip=manifest.clip,
        view=ViewConfig(num_frames=8),
        manifest_sha256="0" * 64,
        val_sha256="0" * 64,
        select_by="macro_f1",
        val_metric=0.5,
        code_version="test",
    )
    contract = ModelContract.model_validate_json(contract.model_dump_json())
    packed = 0
    with DecodePool(1, DecodeLimits()) as pool:
        for row in read_samples(shards, "train").to_pylist():
            clip = pool.submit((data / row["source"]).read_bytes(), contract.clip).result()
            assert list(clip.frame_indices) == row["frame_indices"] == list(shown_at(times_of(data / row["source"]), 8))
            with (shards / row["shard"]).open("rb") as file:
                for jpeg, start, size in zip(
                    ModelView(contract).pick(clip).jpegs, row["member_offsets"], row["member_sizes"], strict=False
                ):
                    file.seek(row["offset"] + start)
                    assert file.read(size) == jpeg
            packed += 1
    return packed


def times_of(path: Path) -> list[int]:
    return [frame.pts for frame in full_decode(path) if frame.pts is not None]


def test_what_older_versions_wrote_means_frames() -> None:
    old = {name: value for name, value in ClipConfig().model_dump().items() if name != "sampling"}
    assert ClipConfig.model_validate(old) == ClipConfig(sampling="frames")
    recipe = PackRecipe().model_dump()
    recipe["clip"] = old
    values = {key: {} for key in ("rejected", "versions", "splits")} | {"class_names": [], "num_videos": 0}
    values |= {"sampling_rule": SAMPLING_RULES["frames"], "samples_sha256": "", "config": recipe}
    assert Manifest.model_validate(values).clip.sampling == "frames"
