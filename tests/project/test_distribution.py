"""What users get is complete and no more: the wheel, what Ray uploads of a clone, and what the lock pins."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ["configs", "packer", "trainer", "serve"]


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
    wanted = {path.relative_to(checkout).as_posix() for name in PACKAGES for path in (checkout / name).rglob("*.py")}
    for pattern in ["configs/*.yaml", "configs/deploy/*", "packer/inspection/static/*", "serve/gateway/static/*"]:
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
@pytest.mark.parametrize("package", PACKAGES[1:])
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
    """`ray job submit --working-dir .` sends the sources and settings, and nothing else that lies beside them."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    working_dir = shutil.copytree(checkout, tmp_path / "project")
    fat = os.urandom(2**20)
    for name in (".venv", ".git", "data", "shards", "runs", "mlruns", ".demo", ".ray", "my clips", "another pack"):
        (working_dir / name).mkdir()
        (working_dir / name / "fat.bin").write_bytes(fat)
    for name in ("mlflow.db", "sheet.html", "predictions.parquet", "film.mp4"):
        (working_dir / name).write_bytes(fat)
    for name in ("mine.yaml", "configs/mine.yaml"):
        (working_dir / name).write_text("epochs: 1\n", encoding="utf-8")
    package = tmp_path / "package.zip"

    def pack(module_path: str, excludes: list[str] | None, is_file: bool = False) -> None:
        create_package(module_path, package, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed({"working_dir": str(working_dir)}, include_gitignore=True, upload_fn=pack)
    uploaded = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    expected = {f"{name}/__init__.py" for name in PACKAGES} | {"pyproject.toml", "mine.yaml", "configs/mine.yaml"}
    assert expected <= uploaded
    assert {name.split("/")[0] for name in uploaded} <= {*PACKAGES, "pyproject.toml", "mkdocs.yml", "mine.yaml"}
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
