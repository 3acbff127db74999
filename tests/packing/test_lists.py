"""Official lists, folders and CSV files, with names and formats as the real ones have them."""

from collections import Counter
from pathlib import Path

import pytest

from configs.pack import PackRecipe, SplitConfig
from configs.section import UsageError
from packer.planning.lists import read_given_splits
from packer.planning.plan import make_plan
from packer.video.catalog import Catalog, Video

HMDB51 = SplitConfig(hmdb51=1)
UCF101 = SplitConfig(ucf101=2)


def catalog_of(sources: list[str]) -> Catalog:
    videos = tuple(
        Video("/nowhere", source, source.split("/")[0], size) for size, source in enumerate(sorted(sources), start=1)
    )
    return Catalog(tuple(sorted({video.class_name for video in videos})), videos, (), {})


def hmdb51(folder: Path) -> Catalog:
    """Writes lists of 12 films, cut into clips of two classes: 8 train, 3 test, 1 unused; returns their catalog."""
    sources = []
    for class_name in ("brush_hair", "sword"):
        lines = []
        for film in range(12):
            for clip in range(2):
                name = f"(Film)_#{film}_(a.b)_{class_name}_u_nm_np1_ba_goo_{clip}.avi"
                lines.append(f"{name} {0 if film == 11 else 2 if film >= 8 else 1} ")
                sources.append(f"{class_name}/{name}")
        (folder / f"{class_name}_test_split1.txt").write_text("\n".join(lines) + "\n")
    return catalog_of(sources)


def ucf101(folder: Path) -> Catalog:
    """Writes lists of 25 groups a class, as Windows ends lines: g08 to g14 are test, as in the real second split."""
    sources = [
        f"{class_name}/v_{stem}_g{group:02d}_c{clip:02d}.avi"
        for class_name, stem in (("ApplyEyeMakeup", "ApplyEyeMakeup"), ("HandstandPushups", "HandStandPushups"))
        for group in range(1, 26)
        for clip in (1, 2)
    ]
    is_test = {source: 8 <= int(source[-10:-8]) <= 14 for source in sources}
    train = [f"{source} {1 + source.startswith('H')}" for source in sources if not is_test[source]]
    test = [source for source in sources if is_test[source]]
    (folder / "trainlist02.txt").write_bytes("\r\n".join([*train, ""]).encode())
    (folder / "testlist02.txt").write_bytes("\r\n".join([*test, ""]).encode())
    return catalog_of(sources)


def planned(catalog: Catalog, config: SplitConfig, lists: Path) -> dict[str, str]:
    given = read_given_splits(catalog, config, lists)
    assert given is not None
    listed = tuple(video for video in catalog.videos if video.source in given.split_of)
    recipe = PackRecipe(split=config)
    plan = make_plan(Catalog(catalog.class_names, listed, (), {}), recipe, given.split_of)
    return {video.source: shard.split for shard in plan.shards for video in shard.videos}


def test_hmdb51_lists_decide_and_val_comes_out_of_train(tmp_path: Path) -> None:
    catalog = hmdb51(tmp_path)
    split_of = planned(catalog, HMDB51, tmp_path)
    film_of = {source: int(source.partition("#")[2].partition("_")[0]) for source in split_of}
    assert {film for source, film in film_of.items() if split_of[source] == "test"} == {8, 9, 10}
    assert set(film_of.values()) == set(range(11))  # 11 is marked 0
    assert len(set(zip(film_of.values(), split_of.values(), strict=True))) == 11
    counts = Counter((source.split("/")[0], split) for source, split in split_of.items())
    assert all(2 <= counts[name, "val"] <= 4 for name in catalog.class_names)
    whole = planned(catalog, SplitConfig(hmdb51=1, val_fraction=0), tmp_path)
    assert Counter(whole.values()) == {"train": 32, "test": 12}


def test_ucf101_lists_decide_and_val_comes_out_of_train(tmp_path: Path) -> None:
    catalog = ucf101(tmp_path)
    split_of = planned(catalog, UCF101, tmp_path)
    assert all((split == "test") == (8 <= int(source[-10:-8]) <= 14) for source, split in split_of.items())
    groups = {(source.split("/")[0], source[-10:-8], split) for source, split in split_of.items()}
    assert len(groups) == 50
    assert Counter(split_of.values()) == {"train": 58, "val": 14, "test": 28}


def test_other_containers_and_missing_clips_are_no_matter(tmp_path: Path) -> None:
    catalog = ucf101(tmp_path)
    given = read_given_splits(
        catalog_of(
            [video.source.replace(".avi", ".mp4") for video in catalog.videos[5:]] + ["HandstandPushups/own.mp4"]
        ),
        UCF101,
        tmp_path,
    )
    assert given is not None
    assert given.num_absent == 5
    assert len(given.split_of) == 95
    assert "HandstandPushups/own.mp4" not in given.split_of


def test_groups_across_official_lists_are_listed_and_the_lists_kept(tmp_path: Path) -> None:
    catalog = hmdb51(tmp_path)
    path = tmp_path / "sword_test_split1.txt"
    path.write_text(
        path.read_text().replace("#0_(a.b)_sword_u_nm_np1_ba_goo_0.avi 1", "#0_(a.b)_sword_u_nm_np1_ba_goo_0.avi 2")
    )
    given = read_given_splits(catalog, HMDB51, tmp_path)
    assert given is not None
    listed = Catalog(catalog.class_names, tuple(v for v in catalog.videos if v.source in given.split_of), (), {})
    plan = make_plan(listed, PackRecipe(split=HMDB51), given.split_of)
    (leak,) = plan.leaks
    assert "brush_hair/(Film)_#0_(a.b)_brush_hair_u_nm_np1_ba_goo_0.avi (" in leak
    assert "sword/(Film)_#0_(a.b)_sword_u_nm_np1_ba_goo_0.avi (test)" in leak


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "goo_1.avi 1 \n",
            "goo_1.avi 1 \n(Film)_#0_(a.b)_sword_u_nm_np1_ba_goo_0.avi 2\n",
            r"sword_test_split1.txt:\d+ lists .* as test, but it is also listed as train",
        ),
        ("goo_1.avi 1 \n", "goo_1.avi 3 \n", r"sword_test_split1.txt:2 must be a file name and 0, 1 or 2"),
        ("goo_1.avi 1 \n", "goo_1.avi\n", r"sword_test_split1.txt:2 must be a file name and 0, 1 or 2"),
    ],
)
def test_damaged_lists_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    catalog = hmdb51(tmp_path)
    path = tmp_path / "sword_test_split1.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        read_given_splits(catalog, HMDB51, tmp_path)


def test_missing_lists_are_named(tmp_path: Path) -> None:
    catalog = hmdb51(tmp_path)
    with pytest.raises(UsageError, match=r"brush_hair_test_split2.txt cannot be read \(No such file or directory\)"):
        read_given_splits(catalog, SplitConfig(hmdb51=2), tmp_path)
    ucf101(tmp_path)
    with pytest.raises(UsageError, match="lists none of the videos"):
        read_given_splits(catalog, UCF101, tmp_path)


def test_a_ucf101_clip_in_both_lists_is_refused(tmp_path: Path) -> None:
    catalog = ucf101(tmp_path)
    with (tmp_path / "testlist02.txt").open("a") as file:
        file.write("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n")
    with pytest.raises(UsageError, match=r"testlist02.txt:29 lists .*g01_c01 as test, but it is also listed as train"):
        read_given_splits(catalog, UCF101, tmp_path)


def test_a_csv_decides(tmp_path: Path) -> None:
    catalog = catalog_of([f"{name}/{number}, x.mp4" for name in "ab" for number in range(5)])
    sources = [video.source for video in catalog.videos]
    splits = ["train", "train", "val", "test", ""] * 2
    path = tmp_path / "splits.csv"
    path.write_text("\ufeffsource,split\n" + "".join(f'"{s}",{p}\n' for s, p in zip(sources, splits, strict=True)))
    split_of = planned(catalog, SplitConfig(method="csv"), path)
    assert split_of == {s: p for s, p in zip(sources, splits, strict=True) if p}
    for text, message in [
        ("path,split\na,b\n", "must begin with a line that names the columns source and split"),
        ("source,split\na/0,dev\n", r"splits.csv:2 has split 'dev': it must be train, val, test or empty"),
        ("source,split\na,train\na,val\n", r"splits.csv:3 lists a as val, but it is also listed as train"),
        ("source,split\na,train\n", "lists none of the videos"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_given_splits(catalog, SplitConfig(method="csv"), path)
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        read_given_splits(catalog, SplitConfig(method="csv"), tmp_path / "gone.csv")


def test_a_csv_may_give_names_without_folders(tmp_path: Path) -> None:
    catalog = catalog_of(
        [f"{name}/{name}{number}.mp4" for name in "ab" for number in range(3)] + ["a/x.mp4", "b/x.mp4"]
    )
    path = tmp_path / "splits.csv"
    rows = [f"{name}{number}.mp4,{split}" for name in "ab" for number, split in enumerate(("train", "val", "test"))]
    path.write_text("source,split\n" + "\n".join(rows))
    split_of = planned(catalog, SplitConfig(method="csv"), path)
    assert split_of == {f"{row[0]}/{row.split(',')[0]}": row.split(",")[1] for row in rows}
    path.write_text("source,split\nx.mp4,train\n")
    with pytest.raises(UsageError, match=r"splits.csv:2 lists x.mp4, which may be a/x.mp4 or b/x.mp4: give the path"):
        read_given_splits(catalog, SplitConfig(method="csv"), path)


def test_a_class_that_lists_leave_out_of_train_is_refused(tmp_path: Path) -> None:
    catalog = catalog_of(["a/0", "a/1", "b/0", "b/1"])
    path = tmp_path / "splits.csv"
    path.write_text("source,split\na/0,train\na/1,test\nb/0,train\nb/1,train\n")
    config = SplitConfig(method="csv", val_fraction=0)
    assert Counter(planned(catalog, config, path).values()) == {"train": 3, "test": 1}  # test may lack a class
    path.write_text("source,split\na/0,train\na/1,test\nb/0,test\nb/1,test\n")
    with pytest.raises(UsageError, match="class 'b' has no video for train"):
        planned(catalog, config, path)


def test_a_group_across_the_splits_of_a_csv_is_refused(tmp_path: Path) -> None:
    catalog = catalog_of(["a/cam1_0", "a/cam1_1", "a/cam2_0", "a/cam3_0"])
    path = tmp_path / "splits.csv"
    path.write_text("source,split\na/cam1_0,train\na/cam1_1,test\na/cam2_0,train\na/cam3_0,train\n")
    config = SplitConfig(method="csv", val_fraction=0, group_regex=r"cam\d")
    with pytest.raises(UsageError, match=r"of one recording, .* in two splits: a/cam1_0 \(train\), a/cam1_1 \(test\)"):
        planned(catalog, config, path)
