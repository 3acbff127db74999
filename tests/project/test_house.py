"""The house keeps its order: who may import whom, what the wheel and Ray's upload hold, what the lock pins."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROOMS = {
    "configs": ["section", "home", "load", "pack", "model", "train", "serve", "score"],
    "packer": [
        *("progress", "storage", "video", "decoders", "planning", "shards", "prepare", "pack"),
        *("verify", "repair", "report", "inspection", "synthetic", "__main__"),
    ],
    "trainer": [
        *("schedule", "views", "stream", "model", "evaluation", "learning", "tracking", "worker", "driver", "__main__"),
    ],
    "serve": [
        *("messages", "request", "replica", "scoring", "gateway", "proxy", "app", "local_ray", "__main__"),
    ],
}
"""Packages, and the rooms (folders, or files) of each, lowest first: a file imports from its own room and those before
it, in its own package and in the packages before it."""
DOORS = {
    "trainer": ["packer.storage", "packer.video.jpeg", "packer.video.sampling", "packer.shards"],
    "serve": [
        *("packer.progress", "packer.storage", "packer.video", "packer.decoders"),
        *("trainer.views", "trainer.model.contract", "trainer.tracking"),
    ],
}
"""The rooms of packages below that a package may enter; configs, and the bare name of a package, are open to all."""
LIBRARIES = {
    "mlflow": ["trainer.tracking", "serve.replica.predictor", "serve.replica.versions"],
    "ray": [
        *("packer.decoders.ray_decoder", "trainer.driver", "trainer.worker.entry"),
        *("serve.request.metrics", "serve.app", "serve.local_ray", "serve.__main__"),
    ],
}
"""Libraries that take seconds to import or that another program could stand in for, and the only rooms that do."""
FORBIDDEN = {
    "configs": {"av", "mlflow", "ray", "torch", "torchvision", "webdataset"},
    "packer": {"mlflow", "torch", "torchvision", "webdataset"},  # webdataset loads torch
    "trainer": {"av"},
    "serve": set(),
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ROOMS
    for path in sorted((ROOT / package).rglob("*.py"))
}
each_file = pytest.mark.parametrize("name", FILES)


def imported(path: Path) -> set[str]:
    """Returns everything that a file imports, inside functions too: our files by their name, libraries by theirs."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & FILES.keys()) or {node.module}
    return names


def lies_in(name: str, rooms: list[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def arrows() -> dict[str, set[str]]:
    """Returns which of our files each of our files imports."""
    return {name: (imported(path) & FILES.keys()) - {name} for name, path in FILES.items()}


@each_file
def test_every_file_has_a_room_in_the_table(name: str) -> None:
    package, *rest = name.split(".")
    assert not rest or rest[0] in ROOMS[package]
    assert FILES[name].stem not in {"utils", "helpers", "common", "base", "misc", "manager"}


@each_file
def test_no_import_runs_back_up(name: str) -> None:
    packages = list(ROOMS)
    package, *rest = name.split(".")
    for target in imported(FILES[name]):
        other, *rooms = target.split(".")
        assert other != "tests", f"{name} imports {target}"
        if other == package and rest and rooms:
            rank = ROOMS[package].index
            assert rank(rooms[0]) <= rank(rest[0]), f"{name} imports {target}, which stands above it"
        elif other in ROOMS and other != package:
            assert packages.index(other) < packages.index(package), f"{name} imports {target}, which stands above it"


@each_file
def test_packages_below_are_entered_by_their_doors(name: str) -> None:
    package = name.partition(".")[0]
    for target in imported(FILES[name]):
        if target.partition(".")[0] not in {package, "configs"} and "." in target and target in FILES:
            assert lies_in(target, DOORS[package]), f"{name} may not enter {target}: see DOORS"


@each_file
def test_libraries_stay_where_they_belong(name: str) -> None:
    libraries = {target.partition(".")[0] for target in imported(FILES[name])}
    assert not libraries & FORBIDDEN[name.partition(".")[0]]
    for library, rooms in LIBRARIES.items():
        assert library not in libraries or lies_in(name, rooms), f"{library} belongs in {rooms}"


def test_no_two_files_import_each_other() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(f"files import one another in a circle: {' <- '.join(error.args[1])}")


@each_file
def test_names_with_an_underscore_stay_in_their_file(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ROOMS:
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]


def test_no_test_imports_another_test() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tests = {name for name in imported(path) if re.search(r"^tests\..*\.?(test_\w+|conftest)$", name)}
        assert not tests, f"{path} imports {tests}: what tests share lies in tests/support"


def test_inits_are_empty_but_for_the_public_address() -> None:
    for name, path in FILES.items():
        if path.name == "__init__.py" and name != "serve.proxy":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert len(tree.body) == 1, f"{path} holds more than its docstring"
            assert ast.get_docstring(tree)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks or would track: the clone a user has, without what lies ignored beside it here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    folder = tmp_path_factory.mktemp("clone") / "clipstream"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(target)], cwd=checkout, check=True, capture_output=True)
    (path,) = target.glob("*.whl")
    return path


def test_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path, checkout: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(checkout).as_posix() for name in ROOMS for path in (checkout / name).rglob("*.py")}
    for pattern in ["configs/*.yaml", "configs/deploy/*", "serve/gateway/static/*"]:
        wanted |= {path.relative_to(checkout).as_posix() for path in checkout.glob(pattern)}
    assert inside == wanted


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment outside the clone, into which the wheel alone is installed.

    The dependencies (gigabytes, and a network) are lent by a .pth file that names this environment's site-packages;
    .pth files in there are not read again, so that this environment's link to the clone is not followed.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, env=outside_environment())
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def outside_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}


@pytest.mark.integration
@pytest.mark.parametrize("package", list(ROOMS)[1:])
def test_installed_commands_run_outside_the_clone(installed: Path, package: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [str(installed), *arguments]
        environment = outside_environment()
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", f"import {package}; print({package}.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent.parent)
    assert f"python -m {package}" in run("-m", package, "--help")


def test_upload_of_a_working_dir_stays_small(checkout: Path, tmp_path: Path) -> None:
    """`ray job submit --working-dir .` sends the sources and none of the big folders that lie beside them."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    working_dir = shutil.copytree(checkout, tmp_path / "project")
    fat = os.urandom(2**20)
    names = [".venv", ".venv-bench", ".git", "data", "shards", "runs", "mlruns", ".demo", "bench-results", ".ray"]
    for name in names:
        (working_dir / name).mkdir()
        (working_dir / name / "fat.bin").write_bytes(fat)
    (working_dir / "mlflow.db").write_bytes(fat)
    package = tmp_path / "package.zip"

    def pack(module_path: str, excludes: list[str] | None, is_file: bool = False) -> None:
        create_package(module_path, package, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed({"working_dir": str(working_dir)}, include_gitignore=True, upload_fn=pack)
    uploaded = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert not {name for name in uploaded if name.split("/")[0] in {*names, "mlflow.db"}}
    assert {f"{name}/__init__.py" for name in ROOMS} <= uploaded
    assert package.stat().st_size < 5 * 2**20


def pins(lock: Path) -> dict[str, str]:
    """Versions by name; every line of the lock must be a pin, one of its hashes, or a comment."""
    versions = {}
    for block in re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8").strip()):
        if block.startswith("#"):
            continue
        pin = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", block)
        assert pin, f"not a pin: {block.splitlines()[0]}"
        assert "--hash=sha256:" in block, f"no hash: {pin[0]}"
        versions[canonicalize_name(pin[1])] = pin[2]
    return versions


@pytest.mark.parametrize("lock", ["requirements.lock", "tests/bench/requirements.lock"])
def test_locks_hold_hashed_pins_and_name_no_index(lock: str) -> None:
    assert pins(ROOT / lock)
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.search(r"://|^\s*(-i|--index-url|--extra-index-url|--find-links)\b", text, re.MULTILINE)


def test_lock_agrees_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    versions = pins(ROOT / "requirements.lock")
    for requirement in map(Requirement, direct):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: run `make lock`"
