import numpy as np
import pytest

from dag_jax.datasets.devkit import Devkit
from dag_jax.datasets.paper_lists import PAPER_LISTS, derive
from dag_jax.datasets.scenes import SPLITS

SEG11 = "VOCdevkit/VOC2011/ImageSets/Segmentation"
SEG12 = "VOCdevkit/VOC2012/ImageSets/Segmentation"
SBD = "benchmark_RELEASE/dataset"


@pytest.fixture
def folder(tmp_path):
    """A folder with a VOC year in it, and a function that adds image lists."""
    (tmp_path / "VOCdevkit/VOC2012").mkdir(parents=True)

    def write(**lists):
        for name, ids in lists.items():
            path = tmp_path / PLACES[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{image_id}\n" for image_id in ids))
        return tmp_path

    return write


PLACES = {
    "train11": f"{SEG11}/train.txt",
    "val11": f"{SEG11}/val.txt",
    "train12": f"{SEG12}/train.txt",
    "val12": f"{SEG12}/val.txt",
    "sbd_train": f"{SBD}/train.txt",
    "sbd_val": f"{SBD}/val.txt",
    "seg11valid": "seg11valid.txt",
    "seg11valid_of_2011": f"{SEG11}/seg11valid.txt",
    "train_aug": f"{SEG12}/train_aug.txt",
    "test07": "VOCdevkit/VOC2007/ImageSets/Main/test.txt",
}


def draw(rng, count):
    """Four lists that overlap as VOC's and SBD's do: kits' train and val are apart, SBD's too."""
    ids = np.array([f"2008_{number:06d}" for number in range(count)])
    in_kit, in_sbd = rng.integers(0, 3, count), rng.integers(0, 3, count)
    return [
        set(ids[part].tolist()) for part in (in_kit == 0, in_kit == 1, in_sbd == 0, in_sbd == 1)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_derived_lists_are_what_sets_give(folder, seed):
    rng = np.random.default_rng(seed)
    train, val, sbd_train, sbd_val = draw(rng, 200)
    train11, val11 = (
        {i for i in train if rng.random() < 0.7},
        {i for i in val if rng.random() < 0.7},
    )
    kit = Devkit(
        folder(
            train12=sorted(train, reverse=True),
            val12=val,
            train11=train11,
            val11=val11,
            sbd_train=sbd_train,
            sbd_val=sbd_val,
        )
    )
    expected = {
        "seg11valid": [i for i in val11 if i not in sbd_train],
        "fcn_train": [*train11, *(i for i in sbd_train if i not in train11)],
        "fcn_star_train": [i for i in train | sbd_train | sbd_val if i not in val],
    }
    for name, ids in expected.items():
        assert list(derive(kit, name).ids) == sorted(ids)


def test_a_published_list_comes_first_and_keeps_its_order(folder):
    data = folder(val11=["a", "b"], sbd_train=["b"], train_aug=["d", "c"])
    assert derive(Devkit(data), "seg11valid").ids == ("a",)
    assert derive(Devkit(data), "fcn_star_train").ids == ("d", "c")
    folder(seg11valid_of_2011=["z", "y"])
    assert derive(Devkit(data), "seg11valid").ids == ("z", "y")
    folder(seg11valid=["x"])
    assert derive(Devkit(data), "seg11valid").ids == ("x",)


def test_kits_and_masks_are_looked_for_in_order(folder):
    images = derive(Devkit(folder(seg11valid=["a"])), "seg11valid")
    assert images.years == ("VOC2011", "VOC2012") and images.needs_masks
    assert images.masks == (
        "VOC2011/SegmentationClass",
        "VOC2012/SegmentationClass",
        "SBD/cls",
        "VOC2012/SegmentationClassAug",
    )
    images = derive(Devkit(folder(test07=["a"])), "voc07_test")
    assert images.years == ("VOC2007",) and not images.needs_masks


def test_both_counts_are_said_where_they_differ(folder, caplog):
    derive(Devkit(folder(train11=["a", "b"], sbd_train=["b", "c"])), "fcn_train")
    (record,) = caplog.records
    assert record.getMessage() == (
        "fcn_train holds 3 images here, made of VOC2011/ImageSets/Segmentation/train.txt (2) and "
        "SBD/train.txt (2); the paper's list has 9,610, which is 1,112 + 8,498 and counts images "
        "on both lists twice"
    )
    caplog.clear()
    derive(Devkit(folder(seg11valid=map(str, range(736)))), "seg11valid")
    assert not caplog.records


@pytest.mark.parametrize(
    ("contents", "name", "lacks", "addresses", "other_addresses"),
    [
        (
            {},
            "seg11valid",
            "seg11valid.txt or VOC2011/ImageSets/Segmentation/val.txt and SBD/train.txt, which",
            ["/seg11valid.txt", "VOCtrainval_25-May-2011.tar", "benchmark.tgz"],
            ["VOCtrainval_11-May-2012.tar"],
        ),
        (
            {"sbd_train": ["a"]},
            "seg11valid",
            "seg11valid.txt or VOC2011/ImageSets/Segmentation/val.txt, which",
            ["/seg11valid.txt", "VOCtrainval_25-May-2011.tar"],
            ["benchmark.tgz"],
        ),
        (
            {"sbd_train": ["a"]},
            "fcn_train",
            "lacks VOC2011/ImageSets/Segmentation/train.txt, which",
            ["VOCtrainval_25-May-2011.tar"],
            ["benchmark.tgz"],
        ),
        (
            {"train12": ["a"], "val12": ["b"]},
            "fcn_star_train",
            "train_aug.txt or SBD/train.txt and SBD/val.txt, which",
            ["benchmark.tgz"],
            ["VOCtrainval"],
        ),
        (
            {},
            "voc07_test",
            "lacks VOC2007/ImageSets/Main/test.txt, which",
            ["VOCtest_06-Nov-2007.tar"],
            ["2012.tar"],
        ),
    ],
)
def test_missing_image_sets_are_named_with_where_to_get_them(
    folder, contents, name, lacks, addresses, other_addresses
):
    with pytest.raises(ValueError) as error:
        derive(Devkit(folder(**contents)), name)
    message = str(error.value)
    assert lacks in message
    assert all(address in message for address in addresses)
    assert not any(address in message for address in other_addresses)


def test_scenes_use_the_same_names():
    assert set(PAPER_LISTS) == set(SPLITS)
