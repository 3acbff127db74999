"""What tests of the packer's command share: runs it, compares packs, reads its refusals."""

import filecmp
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from packer.__main__ import main
from packer.shards.manifest import read_manifest, read_samples


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_same_pack(folder: Path, other: Path) -> None:
    assert files(folder) == files(other)
    assert filecmp.cmpfiles(folder, other, files(folder), shallow=False) == (files(folder), [], [])


def command(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", "packer", *map(str, arguments)]


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def refused(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that a command says before it exits with 2."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the index of a pack."""
    return [row for split in read_manifest(folder).splits for row in read_samples(folder, split).to_pylist()]
