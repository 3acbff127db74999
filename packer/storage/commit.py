"""Replaces several files of a target at once: after a kill at any moment, all of them are old or all are new.

New files wait in a folder below the target's records. Files with new names then move to their places, where nothing
refers to them yet. A file named `commit.json` makes all new files count from then on; `current` finds those that still
wait. Last, they replace the old ones. If a process dies on the way, the next one that writes the target calls
`recover`, which finishes what is committed and undoes the rest.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from configs.section import Section
from packer.storage.files import sync_folder, write_atomically
from packer.storage.location import Location, list_folder
from packer.storage.target_lock import RECORDS

_WAITING = f"{RECORDS}/next"
_UNDO, _COMMIT = "undo.json", "commit.json"


class Change(Section):
    """What changes in a target, by names such as `val-000000.tar` and `.pack/plan.json`."""

    added: tuple[str, ...]
    """New files whose names the target did not have."""
    replaced: tuple[str, ...]
    """New files that take the place of old ones, in this order."""
    removed: tuple[str, ...]
    """Old files that nothing refers to any more."""


@contextmanager
def waiting_folder(target: Location) -> Iterator[Location]:
    """Yields the folder for the new files, laid out like the target; the caller must hold the target's lock.

    If the block ends with an error, the folder and what it holds are removed.
    """
    folder = target / _WAITING
    if isinstance(folder, Path):
        (folder / RECORDS).mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        recover(target)
        raise


def commit(target: Location, change: Change) -> None:
    """Puts the new files, which wait in the folder of `waiting_folder`, into their places, and removes the old ones."""
    waiting, note = target / _WAITING, change.model_dump_json().encode()
    _write(waiting / _UNDO, note)
    for name in change.added:
        _move(target, name)
    _sync(target)
    _write(waiting / _COMMIT, note)
    _finish(target, change)


def recover(target: Location) -> None:
    """Finishes or undoes what a process that died has left; the caller must hold the target's lock."""
    waiting = target / _WAITING
    if not waiting.exists():
        return
    if (waiting / _COMMIT).exists():
        _finish(target, _read(waiting / _COMMIT))
        return
    if (waiting / _UNDO).exists():
        for name in _read(waiting / _UNDO).added:
            (target / name).unlink(missing_ok=True)
        _sync(target)
    _clear(waiting)


def current(target: Location, name: str) -> Location:
    """Returns where a file of a target lies: in its place, or where it waits to get there after its commit."""
    waiting = target / _WAITING / name
    return waiting if name in _replaced(target) and waiting.exists() else target / name


def _finish(target: Location, change: Change) -> None:
    waiting = target / _WAITING
    for name in change.replaced:
        if (waiting / name).exists():
            _move(target, name)
    _sync(target)
    for name in change.removed:
        (target / name).unlink(missing_ok=True)
    (waiting / _UNDO).unlink(missing_ok=True)  # it must not outlive the commit, which it would undo
    if isinstance(waiting, Path):
        sync_folder(waiting)
    (waiting / _COMMIT).unlink(missing_ok=True)
    _clear(waiting)


def _replaced(target: Location) -> tuple[str, ...]:
    """Returns the names of the files that a commit replaces; none if there is no commit, as far as readers can see."""
    try:
        return _read(target / _WAITING / _COMMIT).replaced
    except (FileNotFoundError, NotADirectoryError, ValidationError):  # some web servers give a page for any name
        return ()
    except OSError as error:
        if error.errno == errno.EACCES:  # some stores refuse to tell readers that a file is missing
            return ()
        raise


def _move(target: Location, name: str) -> None:
    if isinstance(target, Path):
        (target / _WAITING / name).replace(target / name)
        return
    waiting = target / _WAITING / name
    waiting.copy(f"{target / name}")
    waiting.unlink()


def _write(location: Location, data: bytes) -> None:
    with write_atomically(location) as file:
        file.write(data)


def _read(location: Location) -> Change:
    return Change.model_validate_json(location.read_bytes())


def _sync(target: Location) -> None:
    if isinstance(target, Path):
        sync_folder(target)
        sync_folder(target / RECORDS)


def _clear(folder: Location) -> None:
    if isinstance(folder, Path):
        shutil.rmtree(folder)
        return
    for place in (folder, folder / RECORDS):
        for entry in list_folder(place) if place.exists() else ():
            if entry.kind == "file":
                (place / entry.name).unlink(missing_ok=True)
