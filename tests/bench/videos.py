"""The videos that the benches run on: real clips where CLIPSTREAM_TEST_DATA names some, else synthetic ones."""

import os
import shutil
from pathlib import Path

from packer.synthetic import main as make_synthetic

NUM_HMDB51_COPIES = 20


def make_sets(folder: Path, num_per_class: int) -> dict[str, Path]:
    """Returns class-per-folder sets of videos below `folder`, by what they are."""
    data = Path(os.environ.get("CLIPSTREAM_TEST_DATA", "/nonexistent"))
    sets = {}
    if (data / "known/hmdb51").is_dir():
        sets["HMDB51 clips (MPEG-4 320x240)"] = _copies_of_hmdb51(data / "known/hmdb51", folder / "hmdb51")
    if (data / "wagon").is_dir():
        sets["surveillance clips (h264 320x240)"] = _part_of_wagon(data / "wagon", folder / "wagon", num_per_class)
    if not sets:
        target = folder / "synthetic"
        make_synthetic([str(target), "--videos-per-class", str(num_per_class // 2), "--side-px", "240"])
        sets["synthetic clips (h264 240x240)"] = target
    return sets


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
