"""Files of a target change at once; kills on the way are in test_relabel."""

from pathlib import Path

import pytest

from packer.storage.commit import Change, commit, current, recover, waiting_folder
from packer.storage.target_lock import RECORDS
from tests.support.packs import files

CHANGE = Change(added=("new.tar",), replaced=("index", f"{RECORDS}/plan"), removed=("old.tar",))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / RECORDS).mkdir()
    for name in ("old.tar", "index", f"{RECORDS}/plan"):
        (tmp_path / name).write_text("old")
    return tmp_path


def write_new(waiting: Path) -> None:
    for name in (*CHANGE.added, *CHANGE.replaced):
        (waiting / name).write_text("new")


def test_all_files_change(target: Path) -> None:
    with waiting_folder(target) as waiting:
        assert isinstance(waiting, Path)
        write_new(waiting)
        assert current(target, "index").read_text() == "old"
        commit(target, CHANGE)
    assert files(target) == [f"{RECORDS}/plan", "index", "new.tar"]
    assert {(target / name).read_text() for name in files(target)} == {"new"}


def commit_a_missing_file(target: Path) -> None:
    with waiting_folder(target) as waiting:
        assert isinstance(waiting, Path)
        write_new(waiting)
        commit(target, CHANGE.model_copy(update={"added": ("new.tar", "none.tar")}))


def test_an_error_leaves_all_as_it_was(target: Path) -> None:
    before = files(target)
    with pytest.raises(FileNotFoundError):
        commit_a_missing_file(target)
    assert files(target) == before
    recover(target)
    assert files(target) == before


@pytest.mark.parametrize("moved", [(), ("index",), ("index", f"{RECORDS}/plan")])
def test_what_is_committed_counts_wherever_it_lies(target: Path, moved: tuple[str, ...]) -> None:
    waiting = target / RECORDS / "next"
    (waiting / RECORDS).mkdir(parents=True)
    write_new(waiting)
    for name in ("new.tar", *moved):
        (waiting / name).replace(target / name)
    (waiting / "undo.json").write_text(CHANGE.model_dump_json())
    assert current(target, "index").read_text() == ("new" if moved else "old")
    (waiting / "commit.json").write_text(CHANGE.model_dump_json())
    assert {current(target, name).read_text() for name in CHANGE.replaced} == {"new"}
    assert current(target, "new.tar") == target / "new.tar"
    recover(target)
    assert files(target) == [f"{RECORDS}/plan", "index", "new.tar"]


def test_a_page_is_no_commit(target: Path) -> None:
    waiting = target / RECORDS / "next"
    waiting.mkdir()
    for name in ("commit.json", "index"):
        (waiting / name).write_text("<html>not found</html>")
    assert current(target, "index") == target / "index"
