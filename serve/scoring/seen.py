"""Which of the scored videos the model already knows: those that lie in the pack that it was trained on.

They are found by the digest of their bytes, so a copy under another name is found, and a video that was converted is
not. The decoder has the digest anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from packer.shards.manifest import ManifestError, manifest_sha256, read_samples
from packer.storage.location import locate

TRAIN, VAL, TEST, NEITHER = "train", "val", "test", "none"
SEEN_IN = (TRAIN, VAL, TEST, NEITHER)
"""Values of the column `seen_in`: the split of the pack in which a video lies, or `none`."""


@dataclass(frozen=True)
class Seen:
    """The videos that a model already knows."""

    shards: str
    """The pack that it was trained on; empty if that is not known."""
    manifest_sha256: str = ""
    """Digest of the pack's manifest; empty if the pack was not looked at."""
    split_of: Mapping[str, str] = field(default_factory=dict)
    """Split by the sha256 of a video."""
    problem: str = ""
    """Why the pack was not looked at; empty if it was."""

    def split(self, source_sha256: str) -> str | None:
        """Returns one of `SEEN_IN` for a video's digest; None if the pack was not looked at."""
        return None if self.problem else self.split_of.get(source_sha256, NEITHER)


def find_seen(shards: str | None, wanted_sha256: str) -> Seen:
    """Returns the videos of a pack.

    A video that lies in several splits counts for the first of train, val and test.

    Args:
        shards: Folder or address of the pack; None: the model's run does not say.
        wanted_sha256: Digest of the manifest of the pack that the model was trained on.
    """
    if shards is None:
        return Seen("", problem="the model's run does not say which pack it was trained on")
    try:
        folder = locate(shards)
        found_sha256 = manifest_sha256(folder)
        if found_sha256 != wanted_sha256:
            return Seen(shards, problem=f"the pack {shards} was changed after the training")
        table = read_samples(folder, None, ("split", "source_sha256"))
        rows = zip(table["source_sha256"].to_pylist(), table["split"].to_pylist(), strict=True)
    except (OSError, ManifestError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return Seen(shards, problem=f"the pack {shards} cannot be read from here ({reason})")
    known = sorted((row for row in rows if row[1] in SEEN_IN), key=lambda row: SEEN_IN.index(row[1]), reverse=True)
    return Seen(shards, found_sha256, dict(known))
