"""The system's programs that some tests need."""

import os
import shutil
from pathlib import Path

import pytest


def system_program(name: str, *folders: Path) -> str:
    """Returns the path of a program, also looked for in some folders.

    If it is missing the test is skipped, or fails if CLIPSTREAM_REQUIRE_SYSTEM=1.
    """
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)]))
    if path is None:
        message = f"the program {name} is not installed"
        if os.environ.get("CLIPSTREAM_REQUIRE_SYSTEM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path
