import numpy as np
import pytest

from dag_jax import datasets
from dag_jax.datasets import rendering, scenes
from dag_jax.errors import StorageError

pytestmark = pytest.mark.slow  # it renders whole splits


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_examples_are_the_rendered_scenes(cache):
    source = datasets.open_dataset("scenes", "seg11valid", cache_dir=cache)
    assert len(source) == scenes.SPLITS["seg11valid"][1]
    image, mask, objects = rendering.render(np.random.default_rng([13, 7]))
    example = source[7]
    assert example["image_id"] == "scene_13_000007"
    assert example["has_mask"]
    np.testing.assert_array_equal(example["image"], image)
    np.testing.assert_array_equal(example["mask"][:, :, 0], mask)
    for name, values in objects.items():
        np.testing.assert_array_equal(example["objects"][name], values)


def test_no_bar_is_left_where_there_is_no_terminal(tmp_path, capfd):
    datasets.load_examples("scenes", "seg11valid", limit=1, cache_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_slice_is_a_slice(cache):
    whole = datasets.open_dataset("scenes", "seg11valid", cache_dir=cache)
    part = datasets.open_dataset("scenes", "seg11valid[3:5]", cache_dir=cache)
    assert [e["image_id"] for e in part] == [whole[i]["image_id"] for i in (3, 4)]


def test_lists_are_apart_but_the_starred_one_holds_its_sister():
    def seeds(split):
        first, count = scenes.SPLITS[split]
        return {(first, number) for number in range(count)}

    assert seeds("fcn_train") < seeds("fcn_star_train")
    splits = [split for split in scenes.SPLITS if split != "fcn_train"]
    for i, split in enumerate(splits):
        for earlier in splits[:i]:
            assert not seeds(split) & seeds(earlier)


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="no split 'voc99'.*seg11valid"):
        datasets.open_dataset("scenes", "voc99")


def test_scenes_take_no_folder(tmp_path):
    with pytest.raises(ValueError, match="not read from data_dir"):
        datasets.open_dataset("scenes", "seg11valid", data_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_named():
    with pytest.raises(StorageError, match="/proc/scenes/scenes/seg11valid/.* cannot be written"):
        datasets.load_examples("scenes", "seg11valid", cache_dir="/proc/scenes", limit=1)
