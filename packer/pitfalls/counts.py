"""Tells what the numbers of clips alone spoil; a dry run knows it before anything is decoded."""

from collections.abc import Iterator, Mapping, Sequence

from configs.pack import SplitConfig
from packer.proportion import wilson_interval

MOST_HALF_WIDTH = 0.10
"""A figure whose 95 % interval reaches further than this to each side hardly tells two models apart."""
FEW_TRAIN_CLIPS = 20
"""With fewer, each clip is more than a twentieth of what a model learns of its class: our own choice of a limit."""

_SHARE_RIGHT = 0.8
"""The intervals are told for this figure, as an example."""
_NUM_NAMED = 5


def count_pitfalls(
    class_names: Sequence[str], counts: Mapping[str, Mapping[str, int]], config: SplitConfig
) -> Iterator[tuple[str, str]]:
    """Yields what the numbers of clips spoil, as (label, text); nothing if they suffice.

    Args:
        class_names: The classes.
        counts: The number of clips by split and class.
        config: How the clips are split.
    """
    if len(class_names) == 1:
        yield (
            "classes",
            f"there is one class only, {class_names[0]!r}: nothing to tell apart; give each class a folder or a label "
            "of its own",
        )
    of_train = counts.get("train", {})
    few = sorted((of_train.get(name, 0), name) for name in class_names if of_train.get(name, 0) < FEW_TRAIN_CLIPS)
    if few:
        named = ", ".join(f"{name!r} ({count})" for count, name in few[:_NUM_NAMED]) + ", ..." * (len(few) > _NUM_NAMED)
        have = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
        yield "few", f"{have} fewer than {FEW_TRAIN_CLIPS} clips to train on: {named}"
    split = next((split for split in ("test", "val") if counts.get(split)), None)
    if split is not None:
        yield from _small_split(split, sum(counts[split].values()), config)


def _small_split(split: str, num_clips: int, config: SplitConfig) -> Iterator[tuple[str, str]]:
    if config.num_folds:
        num_clips *= config.num_folds  # the figure of cross-validation rests on the test clips of all folds
    low, high = wilson_interval(_SHARE_RIGHT, max(1, num_clips))
    if (high - low) / 2 <= MOST_HALF_WIDTH:
        return
    way_out = ""
    if config.is_stratified and not config.num_folds:
        way_out = "; --split.num-folds 5 tests every clip once"
    yield (
        split,
        f"of {num_clips} {split} clip{'s' * (num_clips != 1)}, {_SHARE_RIGHT:.0%} right may mean {100 * low:.0f} to "
        f"{high:.0%}{way_out}".replace("%", " %"),
    )
