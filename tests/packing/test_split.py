"""The split is stratified, repeatable, leaks no copies and refuses what it cannot do."""

from collections import Counter
from pathlib import Path

import pytest

from configs.pack import SplitConfig
from configs.section import UsageError
from packer.planning.group import content_digests, video_groups
from packer.planning.split import find_leaks, share_counts, split_videos
from packer.video.catalog import Catalog, Video
from tests.support.catalogs import catalog_of


def split_of(catalog: Catalog, config: SplitConfig, seed: int = 0) -> list[str]:
    return split_videos(
        catalog, video_groups(catalog.videos, config.group_regex, content_digests(catalog.videos, {})), config, seed, {}
    )


def counts_of(catalog: Catalog, splits: list[str]) -> Counter[tuple[str, str]]:
    return Counter((video.class_name, split) for video, split in zip(catalog.videos, splits, strict=True))


@pytest.mark.parametrize(
    "num_per_class", [{"a": 184, "b": 45, "c": 40, "d": 30}, {"a": 3, "b": 3}, {"a": 1000, "b": 4}]
)
def test_every_class_has_its_share_of_every_split(num_per_class: dict[str, int]) -> None:
    catalog = catalog_of(num_per_class)
    counts = counts_of(catalog, split_of(catalog, SplitConfig()))
    for name, total in num_per_class.items():
        for split, share in {"train": 0.7, "val": 0.15, "test": 0.15}.items():
            assert counts[name, split] >= 1
            assert abs(counts[name, split] - share * total) < 2


def test_split_depends_on_the_seed_alone() -> None:
    catalog = catalog_of({"a": 40, "b": 40})
    assert split_of(catalog, SplitConfig()) == split_of(catalog, SplitConfig())
    assert split_of(catalog, SplitConfig()) != split_of(catalog, SplitConfig(), 1)


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
        splits = split_of(catalog, SplitConfig(num_folds=num_folds, fold=fold), 3)
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
    groups = video_groups(videos, "", content_digests(videos, {}))
    assert len(set(groups)) == 20
    splits = split_of(Catalog(("a", "b"), tuple(videos), (), {}), config)
    assert len(set(zip(groups, splits, strict=True))) == 20
    assert {"train", "val", "test"} == set(splits)


def test_only_files_of_equal_size_are_read(tmp_path: Path) -> None:
    videos = [Video(str(tmp_path / "gone"), str(number), "a", number) for number in range(5)]
    assert video_groups(videos, "", content_digests(videos, {})) == [0, 1, 2, 3, 4]


def test_a_fraction_of_0_leaves_the_split_out() -> None:
    catalog = catalog_of({"a": 10, "b": 1})
    assert set(split_of(catalog, SplitConfig(val_fraction=0, test_fraction=0))) == {"train"}


@pytest.mark.parametrize(
    ("num_per_class", "config", "message"),
    [
        (
            {"a": 9, "b": 2},
            SplitConfig(),
            r"class 'b' has too few videos \(2; .* train and val and test need at least 3",
        ),
        ({"a": 9, "b": 4}, SplitConfig(num_folds=5), r"class 'b' has too few videos \(4; .* 5 folds need at least 5"),
    ],
)
def test_too_small_a_class_is_refused(num_per_class: dict[str, int], config: SplitConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_of(catalog_of(num_per_class), config)


def test_an_empty_class_folder_is_refused() -> None:
    catalog = catalog_of({"a": 9})
    with pytest.raises(UsageError, match="class 'empty' has too few videos"):
        split_of(Catalog(("a", "empty"), catalog.videos, (), {}), SplitConfig())


def hmdb51_catalog() -> Catalog:
    """Clips named as HMDB51's: 40 films, each with clips of up to three of the classes, which have two words too."""
    names = []
    for film in range(40):
        for number, class_name in enumerate(("draw_sword", "sword", "wave")[: 1 + film % 3]):
            for clip in range(1 + (film * 7 + number) % 4):
                stem = f"Film_{film}_(2.0)_{class_name}_f_cm_np{1 + clip % 2}_le_med_{clip}"
                names.append((class_name, f"{class_name}/{stem}.avi"))
    videos = tuple(Video("/nowhere", source, name, size) for size, (name, source) in enumerate(sorted(names), start=1))
    return Catalog(("draw_sword", "sword", "wave"), videos, (), {})


@pytest.mark.parametrize("config", [SplitConfig(), SplitConfig(num_folds=4, fold=2)])
def test_groups_stay_together_and_every_class_is_everywhere(config: SplitConfig) -> None:
    catalog = hmdb51_catalog()
    splits = split_of(catalog, config)
    films = [video.source.partition("Film_")[2].partition("_")[0] for video in catalog.videos]
    assert len(set(zip(films, splits, strict=True))) == len(set(films)) == 40
    counts = counts_of(catalog, splits)
    for name in catalog.class_names:
        total = sum(counts[name, split] for split in ("train", "val", "test"))
        test_share = 1 / config.num_folds if config.num_folds else config.test_fraction
        for split, share in {"val": 0.15, "test": test_share, "train": 0.85 - test_share}.items():
            assert counts[name, split] >= 1
            assert abs(counts[name, split] - share * total) <= 4  # a film has up to 4 clips of a class


@pytest.mark.parametrize("sizes", [[10, 10, 10], [1, 1, 100], [50, 2, 1, 1]])
def test_few_large_groups_still_reach_every_split(sizes: list[int]) -> None:
    sources = [f"a/{group}_{clip}" for group, size in enumerate(sizes) for clip in range(size)]
    videos = tuple(Video("/nowhere", source, "a", size) for size, source in enumerate(sources, start=1))
    catalog = Catalog(("a",), videos, (), {})
    config = SplitConfig(group_regex=r"/(\d+)_")
    splits = split_of(catalog, config)
    assert set(splits) == {"train", "val", "test"}
    assert not find_leaks(videos, video_groups(videos, config.group_regex, {}), splits)


def test_a_share_of_0_stays_empty_though_groups_are_large() -> None:
    videos = tuple(Video("/nowhere", f"a/{n % 3}_{n}", "a", n + 1) for n in range(90))
    splits = split_of(Catalog(("a",), videos, (), {}), SplitConfig(test_fraction=0, group_regex=r"/(\d)_"))
    assert set(splits) == {"train", "val"}


def test_what_is_decided_stays_and_others_follow_their_group() -> None:
    catalog = catalog_of({"a": 30, "b": 30})
    decided = {video.source: ("test", "val", "train")[number % 3] for number, video in enumerate(catalog.videos[:50])}
    groups = [*range(50), *range(10)]
    splits = split_videos(catalog, groups, SplitConfig(), 0, decided)
    assert splits == [*decided.values(), *list(decided.values())[:10]]
    assert not find_leaks(catalog.videos, groups, splits)


def test_leaks_name_a_video_of_each_split() -> None:
    videos = catalog_of({"a": 4}).videos
    assert find_leaks(videos, [0, 0, 1, 0], ["train", "test", "val", "train"]) == ("a/0 (train), a/1 (test)",)
