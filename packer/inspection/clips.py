"""Chooses the clips of a pack that its contact sheet shows: the same ones each time, spread over every class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from packer.inspection.groups import file_groups
from packer.shards.manifest import Manifest
from packer.shards.sample import SampleRow
from packer.shards.stored_plan import PlanNotes
from packer.video.segment import file_of

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Cell:
    """What is shown of one class in one split."""

    class_name: str
    class_index: int
    split: str
    num_samples: int
    """How many samples the pack has there."""
    clips: tuple[SampleRow, ...]
    """Those that are shown, in the order of their sources."""


def choose_clips(
    manifest: Manifest, notes: PlanNotes, table: pa.Table, class_names: Sequence[str], num_clips: int
) -> list[Cell]:
    """Returns the cells that have samples, by class and then by split.

    Args:
        manifest: The manifest of the pack.
        notes: What the plan says about the groups that labels state.
        table: The index with all columns of `SampleRow` that the pack has.
        class_names: The classes to show, in this order.
        num_clips: Most clips of a cell.
    """
    sources = table["source"].to_numpy()
    of_file = file_groups(manifest, notes, table)
    groups = np.array([of_file[file_of(source)] for source in sources], np.int64)
    index_of = {name: index for index, name in enumerate(manifest.class_names)}
    classes, splits = table["class_index"].to_numpy(), table["split"].to_numpy()
    places = {split: np.flatnonzero(splits == split) for split in manifest.splits}
    cells = []
    for name in class_names:
        for split in manifest.splits:
            found = places[split][classes[places[split]] == index_of[name]]
            if len(found):
                by_source = found[np.argsort(sources[found], kind="stable")]
                shown = sorted(_spread(by_source, groups[by_source], num_clips), key=lambda place: sources[place])
                clips = tuple(SampleRow.model_validate(row) for row in table.take(shown).to_pylist())
                cells.append(Cell(name, index_of[name], split, len(found), clips))
    return cells


def _spread(samples: NDArray[np.int64], groups: NDArray[np.int64], num_clips: int) -> list[int]:
    """Returns up to `num_clips` of the samples, of as many groups as possible.

    Equally spaced groups give one each. If there are fewer groups than clips, they take turns until none has more, and
    each gives equally spaced samples: of groups of 1 and 9 samples, 4 clips are the one and the 2nd, 5th and 8th of 9.
    """
    members: dict[int, list[int]] = {}
    for sample, group in zip(samples.tolist(), groups.tolist(), strict=True):
        members.setdefault(group, []).append(sample)
    chosen = equally_spaced(list(members.values()), num_clips)
    shares = [0] * len(chosen)
    num_left = min(num_clips, sum(map(len, chosen)))
    while num_left:
        for number, group in enumerate(chosen):
            if num_left and shares[number] < len(group):
                shares[number] += 1
                num_left -= 1
    return [sample for group, share in zip(chosen, shares, strict=True) for sample in equally_spaced(group, share)]


def equally_spaced(items: Sequence[ItemT], num_items: int) -> list[ItemT]:
    """Returns up to `num_items` of the items, the middle of each equal part: 3 of 9 are those at 1, 4 and 7."""
    num_taken = min(num_items, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * num_taken)] for number in range(num_taken)]
