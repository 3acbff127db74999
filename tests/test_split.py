"""The split is stratified, repeatable, leaks no copies and refuses what it cannot do."""

from collections import Counter
from pathlib import Path

import pytest

from configs.load import UsageError
from configs.pack import SplitConfig
from packer.catalog import Catalog, Video
from packer.split import content_groups, share_counts, split_videos


def catalog_of(num_per_class: dict[str, int]) -> Catalog:
    """A catalog of files that need not exist: files of different sizes are never read."""
    names = [(name, number) for name, count in num_per_class.items() for number in range(count)]
    videos = tuple(
        Video(f"/nowhere/{name}/{number}", f"{name}/{number}", name, size)
        for size, (name, number) in enumerate(names, start=1)
    )
    return Catalog(tuple(sorted(num_per_class)), videos, (), {})


def counts_of(catalog: Catalog, splits: list[str]) -> Counter[tuple[str, str]]:
    return Counter((video.class_name, split) for video, split in zip(catalog.videos, splits, strict=True))


@pytest.mark.parametrize(
    "num_per_class", [{"a": 184, "b": 45, "c": 40, "d": 30}, {"a": 3, "b": 3}, {"a": 1000, "b": 4}]
)
def test_every_class_has_its_share_of_every_split(num_per_class: dict[str, int]) -> None:
    catalog = catalog_of(num_per_class)
    counts = counts_of(catalog, split_videos(catalog, SplitConfig(), 0))
    for name, total in num_per_class.items():
        for split, share in {"train": 0.7, "val": 0.15, "test": 0.15}.items():
            assert counts[name, split] >= 1
            assert abs(counts[name, split] - share * total) < 2


def test_split_depends_on_the_seed_alone() -> None:
    catalog = catalog_of({"a": 40, "b": 40})
    assert split_videos(catalog, SplitConfig(), 0) == split_videos(catalog, SplitConfig(), 0)
    assert split_videos(catalog, SplitConfig(), 0) != split_videos(catalog, SplitConfig(), 1)


def test_share_counts_examples() -> None:
    assert share_counts({"a": 10, "b": 10, "c": 3}, 0.15) == {"a": 1, "b": 1, "c": 1}
    assert share_counts({"a": 10, "b": 10}, 0.15) == {"a": 2, "b": 1}
    for num_classes in range(1, 9):
        for size in range(8, 40):
            counts = share_counts({str(name): size for name in range(num_classes)}, 0.15)
            assert abs(sum(counts.values()) - num_classes * size * 0.15) <= 0.5 + 1e-9


@pytest.mark.parametrize("num_folds", [2, 5])
def test_folds_cover_every_video_once(num_folds: int) -> None:
    catalog = catalog_of({"a": 31, "b": 12})
    tests = []
    for fold in range(num_folds):
        splits = split_videos(catalog, SplitConfig(num_folds=num_folds, fold=fold), 3)
        counts = counts_of(catalog, splits)
        assert all(counts[name, split] for name in "ab" for split in ("train", "val", "test"))
        tests += [video for video, split in zip(catalog.videos, splits, strict=True) if split == "test"]
    assert sorted(video.source for video in tests) == sorted(video.source for video in catalog.videos)


@pytest.mark.parametrize("config", [SplitConfig(), SplitConfig(num_folds=3, fold=1)])
def test_copies_stay_together(tmp_path: Path, config: SplitConfig) -> None:
    videos = []
    for number in range(60):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(b"content %02d" % (number % 20))
        videos.append(Video(str(path), path.name, "a" if number % 2 else "b", path.stat().st_size))
    groups = content_groups(videos)
    assert len(set(groups)) == 20
    splits = split_videos(Catalog(("a", "b"), tuple(videos), (), {}), config, 0)
    assert len(set(zip(groups, splits, strict=True))) == 20
    assert {"train", "val", "test"} == set(splits)


def test_only_files_of_equal_size_are_read(tmp_path: Path) -> None:
    videos = [Video(str(tmp_path / "gone"), str(number), "a", number) for number in range(5)]
    assert content_groups(videos) == [0, 1, 2, 3, 4]


def test_a_fraction_of_0_leaves_the_split_out() -> None:
    catalog = catalog_of({"a": 10, "b": 1})
    assert set(split_videos(catalog, SplitConfig(val_fraction=0, test_fraction=0), 0)) == {"train"}


@pytest.mark.parametrize(
    ("num_per_class", "config", "message"),
    [
        (
            {"a": 9, "b": 2},
            SplitConfig(),
            r"class 'b' has too few videos \(2 .* train and val and test need at least 3",
        ),
        ({"a": 9, "b": 4}, SplitConfig(num_folds=5), r"class 'b' has too few videos \(4 .* 5 folds need at least 5"),
    ],
)
def test_too_small_a_class_is_refused(num_per_class: dict[str, int], config: SplitConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_videos(catalog_of(num_per_class), config, 0)


def test_an_empty_class_folder_is_refused() -> None:
    catalog = catalog_of({"a": 9})
    with pytest.raises(UsageError, match="class 'empty' has too few videos"):
        split_videos(Catalog(("a", "empty"), catalog.videos, (), {}), SplitConfig(), 0)
