"""Which files of a data folder are candidates, and what becomes of the rest."""

import os
from pathlib import Path

import pytest
from PIL import Image

from configs.section import UsageError
from packer.video.catalog import find_videos
from tests.support.videos import number_picture, write_numbered_video


def test_everything_in_a_class_folder_is_found(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "video.mp4", 3).read_bytes()
    for name in ("b/plain.mp4", "b/no_extension", "b/deep/er/x.avi", "b/folder.mp4/inner.mp4", "a/Ünï (1).mp4"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(video)
    catalog = find_videos(tmp_path / "data")
    assert catalog.class_names == ("a", "b")
    assert [video.source for video in catalog.videos] == [
        "a/Ünï (1).mp4",
        "b/deep/er/x.avi",
        "b/folder.mp4/inner.mp4",
        "b/no_extension",
        "b/plain.mp4",
    ]
    assert [video.class_name for video in catalog.videos] == ["a", "b", "b", "b", "b"]
    assert (catalog.num_skipped, catalog.non_videos) == ({}, ())


def test_what_is_no_video_is_set_aside_or_counted(tmp_path: Path) -> None:
    (tmp_path / "a/deep").mkdir(parents=True)
    (tmp_path / ".hidden_class").mkdir()
    write_numbered_video(tmp_path / "a/video.mp4", 3)
    (tmp_path / "a/.hidden.mp4").write_bytes(b"x")
    (tmp_path / "a/deep/label.txt").write_text("a label")
    (tmp_path / "a/empty.mp4").touch()
    Image.fromarray(number_picture(1)).save(tmp_path / "a/thumb.jpg")
    (tmp_path / "a/broken.mp4").write_bytes(bytes(2000))
    (tmp_path / "readme.md").write_text("beside the class folders")
    os.mkfifo(tmp_path / "a/pipe.mp4")
    catalog = find_videos(tmp_path)
    assert [video.source for video in catalog.videos] == ["a/broken.mp4", "a/video.mp4"]
    assert {video.source: error.reason for video, error in catalog.non_videos} == {
        "a/deep/label.txt": "not_a_video",
        "a/empty.mp4": "not_a_video",
        "a/thumb.jpg": "not_a_video",
    }
    assert catalog.num_skipped == {"hidden": 2, "file beside the class folders": 1, "neither file nor folder": 1}


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    video = write_numbered_video(tmp_path / "store/video.mp4", 3)
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a/link.mp4").symlink_to(video)
    (data / "a/dangling.mp4").symlink_to(tmp_path / "gone.mp4")
    (data / "a/up").symlink_to(data / "a")
    (data / "a/top").symlink_to(data)
    (data / "a/itself.mp4").symlink_to(data / "a/itself.mp4")
    os.mkfifo(tmp_path / "pipe")
    (data / "a/pipe.mp4").symlink_to(tmp_path / "pipe")
    (data / "b").symlink_to(tmp_path / "store")
    catalog = find_videos(data)
    assert [video.source for video in catalog.videos] == [
        "a/dangling.mp4",
        "a/itself.mp4",
        "a/link.mp4",
        "b/video.mp4",
    ]
    assert catalog.num_skipped == {"link to a folder above it": 2, "neither file nor folder": 1}


def test_names_that_are_not_utf8_become_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)  # noqa: PTH102
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_numbered_video(tmp_path / "video.mp4", 3).rename(os.fsdecode(folder + b"/\xff.mp4"))
    catalog = find_videos(tmp_path)
    assert catalog.class_names == (r"caf\xe9",)
    assert catalog.videos[0].source == r"caf\xe9/\xff.mp4"
    assert Path(catalog.videos[0].path).is_file()
    assert catalog.videos[0].key.startswith("caf_xe9-xff-")


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for text in (None, "not a video"):
        if text:
            (tmp_path / "a/notes.txt").write_text(text)
        with pytest.raises(UsageError, match="holds no videos: it must hold one folder per class"):
            find_videos(tmp_path)
