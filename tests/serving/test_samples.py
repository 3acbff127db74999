"""The sample videos that an operator offers: which are found in a folder, and how clients ask for them."""

import os
from pathlib import Path

import numpy as np
import pytest

from configs.section import UsageError
from configs.serve import ServeConfig
from serve.__main__ import main
from serve.gateway.page import MAX_SAMPLE_DEPTH, MAX_SAMPLE_FOLDERS, MAX_SAMPLES, find_samples
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import ask, served
from tests.support.videos import write_video

pytestmark = MLFLOW_WARNINGS


def make(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return str(folder)


def names(folder: str) -> list[str]:
    return [sample.name for sample in find_samples(folder)]


def test_videos_in_class_folders_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = make(tmp_path, "wave/b.mp4", "wave/a.avi", "clap/c.mp4", "top.webm", "wave/notes.txt", "clap/.d.mp4")
    assert names(folder) == ["clap/c.mp4", "top.webm", "wave/a.avi", "wave/b.mp4"]
    for sample in find_samples(folder):
        assert sample.path.read_text() == sample.name


def test_of_too_many_each_folder_gives_its_share(tmp_path: Path) -> None:
    folder = make(tmp_path, *(f"class{label:02}/{number:02}.mp4" for label in range(10) for number in range(10)))
    found = names(folder)
    assert len(found) == MAX_SAMPLES == 24
    shares = [[name for name in found if name.startswith(f"class{label:02}/")] for label in range(10)]
    assert [len(share) for share in shares] == [3] * 4 + [2] * 6
    assert shares[0] == ["class00/00.mp4", "class00/01.mp4", "class00/02.mp4"]
    assert found == sorted(found)


def test_in_one_folder_the_first_by_name_are_taken(tmp_path: Path) -> None:
    folder = make(tmp_path, *(f"{number:02}.mp4" for number in range(30)))
    assert names(folder) == [f"{number:02}.mp4" for number in range(MAX_SAMPLES)]


def test_the_search_has_bounds(tmp_path: Path) -> None:
    deepest = "/".join("abcdefgh"[:MAX_SAMPLE_DEPTH])
    make(tmp_path / "deep", f"{deepest}/in.mp4", f"{deepest}/below/out.mp4")
    assert names(str(tmp_path / "deep")) == [f"{deepest}/in.mp4"]
    (tmp_path / "deep" / "a" / "loop").symlink_to(tmp_path / "deep")  # a link that leads above itself ends too
    assert f"{deepest}/in.mp4" in names(str(tmp_path / "deep"))
    for number in range(MAX_SAMPLE_FOLDERS - 1):
        (tmp_path / "wide" / f"{number:04}").mkdir(parents=True)
    make(tmp_path / "wide", f"{MAX_SAMPLE_FOLDERS - 2:04}/last.mp4", "9999/beyond.mp4")
    assert names(str(tmp_path / "wide")) == [f"{MAX_SAMPLE_FOLDERS - 2:04}/last.mp4"]


def test_a_name_that_is_not_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"caf\xe9") / "a.mp4").touch()
    assert names(str(tmp_path)) == ["caf\N{REPLACEMENT CHARACTER}/a.mp4"]


@pytest.mark.parametrize("name", ["samples", "~/samples"])
def test_what_is_wrong_with_a_folder_is_said_with_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--samples", name]) == 2
    assert f"samples ({tmp_path}/samples) cannot be read: No such file" in capsys.readouterr().err
    make(tmp_path / "samples", "class/notes.txt")
    with pytest.raises(UsageError, match=rf"samples \({tmp_path}/samples\) holds no file with the name of a video"):
        find_samples(name)


def test_clients_ask_for_them_by_number(tmp_path: Path) -> None:
    for name in ("wave", "clap"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        write_video(tmp_path / "videos" / name / "one.mp4", [np.full((48, 64, 3), 9, np.uint8)] * 3)
    config = ServeConfig(tracking_uri=store_uri(tmp_path), samples=str(tmp_path / "videos"), allow_unauthenticated=True)
    with served(config) as port:
        assert ask(port, "GET", "/samples").json == {"samples": ["clap/one.mp4", "wave/one.mp4"]}
        reply = ask(port, "GET", "/samples/1")
        assert reply.body == (tmp_path / "videos" / "wave" / "one.mp4").read_bytes()
        assert reply.headers["Content-Type"] == "video/mp4"
        for other in ("2", "-1", "wave", "01", "wave%2Fone.mp4"):
            assert ask(port, "GET", f"/samples/{other}").code in {"no_sample", "not_found"}
