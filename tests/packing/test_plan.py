"""Which shard holds which video, before anything is decoded."""

import re
from collections import Counter

import pytest

from configs.pack import PackRecipe, ShardConfig
from configs.section import UsageError
from packer.planning.plan import make_plan
from packer.video.catalog import Catalog, Video
from tests.support.catalogs import catalog_of


@pytest.mark.parametrize("num_per_class", [3, 5, 20, 100])
@pytest.mark.parametrize("config", [ShardConfig(), ShardConfig(max_samples=7), ShardConfig(min_train_shards=1)])
def test_every_video_is_in_one_shard(num_per_class: int, config: ShardConfig) -> None:
    catalog = catalog_of({"a": num_per_class, "b": num_per_class})
    plan = make_plan(catalog, PackRecipe(shards=config))
    planned = [video for shard in plan.shards for video in shard.videos]
    assert Counter(planned) == Counter(catalog.videos)
    train = [shard for shard in plan.shards if shard.split == "train"]
    lengths = [len(shard.videos) for shard in train]
    assert len(train) >= min(config.min_train_shards, sum(lengths))
    assert max(lengths) <= config.max_samples
    assert max(lengths) - min(lengths) <= 1
    assert [shard.name for shard in train] == [f"train-{number:06d}" for number in range(len(train))]


def test_classes_are_mixed_within_shards() -> None:
    plan = make_plan(catalog_of({"a": 100, "b": 100}), PackRecipe())
    assert all(len({video.class_name for video in shard.videos}) == 2 for shard in plan.shards)


def test_a_plan_is_repeatable() -> None:
    catalog = catalog_of({"a": 9, "b": 9})
    assert make_plan(catalog, PackRecipe()) == make_plan(catalog, PackRecipe())
    assert make_plan(catalog, PackRecipe()).shards != make_plan(catalog, PackRecipe(seed=1)).shards


@pytest.mark.parametrize(
    ("source", "start"),
    [
        ("clap/Clap #2 (a.b).avi", "clap-clap_2_a_b-"),
        ("Übung/ñ", "bung-x-"),
        ("a/.x", "a-x-"),
        (f"{'long ' * 30}/{'name.' * 60}mp4", "long_long_long_long_long-name_name"),
    ],
)
def test_keys_are_short_and_plain(source: str, start: str) -> None:
    key = Video("", source, source.partition("/")[0], 1).key
    assert key.startswith(start)
    assert re.fullmatch(r"[a-z0-9_-]{1,80}", key)


def test_equal_names_in_other_folders_have_other_keys() -> None:
    videos = [Video("", source, "a", 1) for source in ("a/x.mp4", "a/x.avi", "a/b/x.mp4", "a/X.mp4")]
    assert len({video.key for video in videos}) == 4


def test_a_shared_key_is_refused() -> None:
    video = Video("/nowhere", "a/x.mp4", "a", 1)
    with pytest.raises(UsageError, match="would share the key a-x-"):
        make_plan(Catalog(("a",), (video, video), (), {}), PackRecipe())
