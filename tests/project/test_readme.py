"""What the README says exists: its make targets, its commands with their options, the files of its map."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PARTS = r"packer\.synthetic|packer (?:inspect|repair|verify)|packer|trainer|serve score|serve"
COMMANDS = sorted(set(re.findall(rf"python -m ({PARTS})([^`'\n#|&]*)", README)))


@cache
def help_of(module: str) -> str:
    command = [sys.executable, "-m", *module.split(), "--help"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)`?", README))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:.*## \S", MAKEFILE, re.MULTILINE)


def test_make_without_a_target_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True)
    for target in re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE):
        assert f"make {target} " in done.stdout


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_options_of_commands_exist(module: str, arguments: str) -> None:
    for word in shlex.split(arguments, comments=True):
        if word.startswith("--"):
            assert re.search(rf"^ +{re.escape(word)}\b", help_of(module), re.MULTILINE), f"{module} has no {word}"


def test_options_of_the_table_exist() -> None:
    module = ""
    for line in README[README.index("## Configuration") :].splitlines():
        if line.startswith("| ") and "`--" in line:
            named = re.match(r"\| `python -m ([\w ]+)`", line)
            module = named[1] if named else module
            for option in re.findall(r"`(--[a-z.-]+)`", line.split("|")[2]):
                assert option in help_of(module), f"{module} has no {option}"


def test_map_names_every_file_and_no_other() -> None:
    start = README.index("## Files")
    blocks = re.split(r"^(?=\w+/ )", README[start : README.index("## Configuration")], flags=re.MULTILINE)
    for package in ["packer", "trainer", "serve"]:
        (block,) = [block for block in blocks if block.startswith(f"{package}/")]
        named = set(re.findall(r"\b(\w+\.py)\b", block))
        present = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py", "__main__.py"}
        assert named == present


def test_yaml_files_named_exist() -> None:
    for name in re.findall(r"configs/[\w/]+\.(?:yaml|sh)", README):
        assert (ROOT / name).is_file()


def test_tests_named_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", README)
    assert len(named) >= 12
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"no {name} in {file}"
