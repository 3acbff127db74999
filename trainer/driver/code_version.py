"""Names the version of the code that trained a model."""

import hashlib
import logging
import subprocess
from pathlib import Path

import configs
import packer
import trainer

logger = logging.getLogger(__name__)


def code_version() -> str:
    """Returns the git commit of the code, with `-dirty` if its sources were changed; without git, a digest of them.

    What lies beside the sources, such as packs and predictions, does not count.
    """
    folders = [Path(str(package.__file__)).parent for package in (configs, packer, trainer)]
    git = ["git", "-C", str(folders[0].parent)]
    if (folders[0].parent / ".git").exists():
        try:
            commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
            of_sources = [*git, "status", "--porcelain", "--", *map(str, folders)]
            status = subprocess.run(of_sources, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            logger.info("code version taken from the sources reason=%s", error)
        else:
            return commit.strip() + ("-dirty" if status.strip() else "")
    return f"sources-{_sources_sha256(folders)[:16]}"


def _sources_sha256(folders: list[Path]) -> str:
    """Returns a digest of the Python sources below some folders."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
