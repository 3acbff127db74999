"""A video is packed once and under its own name, whatever that name is and whether it is a file or a link."""

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.support.packs import rows_of, run
from tests.support.videos import write_classes, write_numbered_video

NAMES = [
    "a.b.c.mp4",
    "#20 (the, \"best\") [of] {all} & 'more';.avi",
    "no extension",
    "Ünïcode 視頻 🎬.mp4",
    "-dash first.mp4",
    "concat:x|y.mp4",
    "%03d.mp4",
    "new\nline.mp4",
    "n" * 250 + ".mp4",
    ".mp4.mp4"[1:],
]


def test_awkward_names(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"class": 0})
    for number, name in enumerate(NAMES):
        video = write_numbered_video(tmp_path / "video.mp4", 4, first_number=number * 4)
        video.rename(data / "class" / name)
    (data / "class/folder.mp4").mkdir()
    video = write_numbered_video(tmp_path / "video.mp4", 4, first_number=1000)
    shutil.copy(video, data / "class/folder.mp4/inner.mp4")
    sources = [*NAMES, "folder.mp4/inner.mp4"]
    if (undecodable := _undecodable(data / "class", video)) is not None:
        sources.append(undecodable)
    stem = write_numbered_video(tmp_path / "same stem.avi", 4, codec="mpeg4", first_number=2000)
    stem.rename(data / "class/a.b.c.avi")
    (tmp_path / "elsewhere.mp4").write_bytes(
        write_numbered_video(tmp_path / "v.mp4", 4, first_number=3000).read_bytes()
    )
    (data / "class/link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    sources += ["a.b.c.avi", "link.mp4"]
    assert run(data, tmp_path / "shards", "--clip.num-frames=2", "--clip.short-side-px=16", "--workers=1") == 0
    rows = rows_of(tmp_path / "shards")
    assert sorted(row["source"] for row in rows) == sorted(f"class/{source}" for source in sources)
    assert len({row["key"] for row in rows}) == len(rows)
    names = []
    for path in (tmp_path / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert sorted({name.partition(".")[0] for name in names}) == sorted(row["key"] for row in rows)
    assert run("verify", tmp_path / "shards") == 0


def _undecodable(folder: Path, video: Path) -> str | None:
    """Copies a video to a name that is not UTF-8, where the file system takes one; returns how it is written."""
    try:
        shutil.copy(video, os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4"))
    except OSError:
        return None
    with (folder / os.fsdecode(b"caf\xe9.mp4")).open("ab") as file:
        file.write(b"\0" * 8)  # not a copy of the video it was made of
    return r"caf\xe9.mp4"


def test_a_dangling_link_is_listed_as_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data", {"a": 3}, 3)
    (data / "a/dangling.mp4").symlink_to(tmp_path / "gone.mp4")
    options = ["--workers=1", "--split.val-fraction=0", "--split.test-fraction=0"]
    assert run(data, tmp_path / "shards", *options) == 1
    assert "a/dangling.mp4,a,train,unreadable,the file cannot be read: No such file" in (
        (tmp_path / "shards/rejected.csv").read_text().replace('"', "")
    )
