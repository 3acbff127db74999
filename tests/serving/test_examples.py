"""The examples of asking the server in README and docs, run as they are printed, against a real one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.serve import API_KEY_VARIABLE, ServeConfig
from tests.support.programs import system_program
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import served
from tests.support.videos import write_video

pytestmark = MLFLOW_WARNINGS

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")  # the README's are among these
SECTION = re.split(r"^## ", PAGE[PAGE.index("## Ask it") :], flags=re.MULTILINE)[1]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
COMMANDS = [example.partition("\n") for language, block in BLOCKS if not language for example in block.split("$ ")[1:]]
SCRIPTS = [block for language, block in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    write_video(folder / "clip.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10, fps=10)
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def ports(champion_store: Path) -> Iterator[dict[bool, int]]:
    """A server's port, by whether it wants a key."""
    config = ServeConfig(tracking_uri=store_uri(champion_store), allow_unauthenticated=True)
    with served(config) as without_key, served(config, keys=("key",)) as with_key:
        yield {False: without_key, True: with_key}


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {API_KEY_VARIABLE: "key"}
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def pattern(printed: str) -> str:
    """Returns what an answer must match: `...` stands for anything, a number for any number, and space for none."""
    printed = re.escape("".join(printed.split())).replace(r"\.\.\.", ".*")
    return re.sub(r":[0-9]+(\\\.[0-9]+)?", r":[0-9.e-]+", printed)


@pytest.mark.parametrize(("command", "printed"), [(command, printed) for command, _, printed in COMMANDS])
def test_commands(folder: Path, ports: dict[bool, int], command: str, printed: str) -> None:
    system_program("curl")
    command = command.replace("8000", str(ports[API_KEY_VARIABLE in command])).replace("curl", "curl --silent", 1)
    answer = run(["bash", "-c", command], folder)
    assert re.fullmatch(pattern(printed), "".join(answer.split()))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(folder: Path, ports: dict[bool, int], script: str) -> None:
    assert "bright" in run([sys.executable, "-c", script.replace("8000", str(ports[False]))], folder)


def test_there_are_examples_of_each_kind() -> None:
    assert (len(COMMANDS), len(SCRIPTS)) == (4, 2)
