import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dag_jax.datasets import (
    CLASS_NAMES,
    VOID,
    VocDevkit,
    load_examples,
    open_dataset,
    voc_config,
    voc_splits,
)
from dag_jax.datasets.voc import read_objects


def write_image(year, image_id, *, size=(40, 30), objects=(), mask=None, aug=None):
    """One photograph with its annotation; `objects` are (name, corners 1-based, difficult)."""
    for folder in ("JPEGImages", "Annotations"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    width, height = size
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(ramp).save(year / "JPEGImages" / f"{image_id}.jpg", quality=95)
    items = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        f"<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, (x0, y0, x1, y1), difficult in objects
    )
    (year / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{items}</annotation>")
    for folder, values in (("SegmentationClass", mask), ("SegmentationClassAug", aug)):
        if values is not None:
            (year / folder).mkdir(exist_ok=True)
            palette = Image.fromarray(np.full((height, width), values, np.uint8), "L").convert("P")
            palette.putdata(np.full(width * height, values, np.uint8).tolist())
            palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8))
            palette.save(year / folder / f"{image_id}.png")


def write_list(year, name, ids):
    path = year / "ImageSets" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids))


@pytest.fixture
def voc(tmp_path):
    """A VOC of four photographs: one with both masks, one with SBD's only, two with none."""
    year = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    objects = [("aeroplane", (1, 1, 40, 30), 0), ("tvmonitor", (5, 6, 7, 8), 1)]
    write_image(year, "2007_000002", objects=objects, mask=15, aug=3)
    write_image(year, "2007_000001", size=(20, 50), objects=objects[1:], aug=20)
    write_image(year, "2007_000003")
    write_list(year, "Segmentation/val", ["2007_000002"])
    write_list(year, "Segmentation/train_aug", ["2007_000002", "2007_000001"])
    write_list(year, "Main/train", ["2007_000003", "2007_000002", "2007_000001"])
    for one_class in ("dog_train", "train_val"):
        write_list(year, f"Main/{one_class}", ["2007_000003 -1", "2007_000002  1"])
    old = tmp_path / "data" / "VOCdevkit" / "VOC2007"
    write_image(old, "000004", objects=[("car", (2, 3, 10, 11), 0)])
    write_list(old, "Main/test", ["000004"])
    return tmp_path / "data"


def open_voc(folder, split):
    return open_dataset("voc", split, data_dir=folder)


def snapshot(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_lists_become_splits(voc):
    assert sorted(voc_splits(voc)) == [
        "voc2007_main_test",
        "voc2012_main_train",
        "voc2012_seg_train_aug",
        "voc2012_seg_val",
    ]
    assert voc_splits(voc / "VOCdevkit") == voc_splits(voc)


def test_an_example_holds_image_mask_and_boxes(voc):
    examples = open_voc(voc, "voc2012_seg_val")
    assert len(examples) == 1
    example = examples[0]
    assert example["image_id"] == "2007_000002"
    photograph = Image.open(voc / "VOCdevkit/VOC2012/JPEGImages/2007_000002.jpg")
    np.testing.assert_array_equal(example["image"], np.asarray(photograph))
    assert example["image"].dtype == np.uint8 and example["image"].shape == (30, 40, 3)
    np.testing.assert_array_equal(example["mask"], np.full((30, 40, 1), 15, np.uint8))
    assert example["mask"].dtype == np.uint8 and example["has_mask"] is True
    objects = example["objects"]
    np.testing.assert_array_equal(objects["boxes"], [[0, 0, 39, 29], [4, 5, 6, 7]])
    np.testing.assert_array_equal(objects["label"], [1, 20])
    np.testing.assert_array_equal(objects["difficult"], [False, True])
    types = [objects[name].dtype for name in ("boxes", "label", "difficult")]
    assert types == [np.float32, np.int32, np.bool_]


def test_order_is_the_list_s_and_missing_masks_are_void(voc):
    examples = open_voc(voc, "voc2012_main_train")
    assert [e["image_id"] for e in examples] == ["2007_000003", "2007_000002", "2007_000001"]
    assert [e["has_mask"] for e in examples] == [False, True, False]
    assert (examples[0]["mask"] == VOID).all() and examples[0]["mask"].shape == (30, 40, 1)
    assert examples[0]["objects"]["boxes"].shape == (0, 4)
    assert examples[0]["objects"]["label"].shape == (0,)
    assert examples[-1]["image_id"] == "2007_000001"
    with pytest.raises(IndexError, match="example 3 of 3"):
        examples[3]


def test_the_augmented_list_takes_the_augmented_masks(voc):
    examples = open_voc(voc, "voc2012_seg_train_aug")
    assert [int(e["mask"][0, 0, 0]) for e in examples] == [3, 20]
    assert examples[1]["mask"].shape == (50, 20, 1)


def test_augmented_masks_fill_gaps_where_asked(voc, tmp_path):
    config = voc_config(voc, splits=["voc2012_main_train"], masks="aug")
    builder = VocDevkit(data_dir=tmp_path / "own", config=config)
    builder.download_and_prepare(file_format="array_record")
    masks = [e["mask"] for e in builder.as_data_source(split="voc2012_main_train")]
    assert [int(mask[0, 0, 0]) for mask in masks] == [VOID, 15, 20]
    with pytest.raises(ValueError, match="masks must be 'voc' or 'aug', got 'sbd'"):
        voc_config(voc, masks="sbd")


def test_all_splits_at_once(voc, tmp_path):
    builder = VocDevkit(data_dir=tmp_path / "own", config=voc_config(voc))
    builder.download_and_prepare(file_format="array_record")
    assert sorted(builder.info.splits) == sorted(voc_splits(voc))


def test_a_slice_of_a_split(voc):
    examples = open_voc(voc, "voc2012_main_train[1:]")
    assert [e["image_id"] for e in examples] == ["2007_000002", "2007_000001"]


def test_voc2007_has_no_masks(voc):
    example = open_voc(voc, "voc2007_main_test")[0]
    assert not example["has_mask"]
    np.testing.assert_array_equal(example["objects"]["boxes"], [[1, 2, 9, 10]])
    assert CLASS_NAMES[example["objects"]["label"][0]] == "car"


def test_nothing_is_written_or_said(voc, capfd):
    before = snapshot(voc.parent)
    assert len(list(open_voc(voc, "voc2012_seg_val"))) == 1
    assert snapshot(voc.parent) == before
    assert capfd.readouterr() == ("", "")


def test_another_folder_and_a_changed_one_are_read_as_they_are(voc, tmp_path):
    other_folder = tmp_path / "other"
    year = other_folder / "VOC2012"
    write_image(year, "2007_000002", mask=7)
    write_list(year, "Segmentation/val", ["2007_000002"])
    assert open_voc(voc, "voc2012_seg_val")[0]["mask"].max() == 15
    assert open_voc(other_folder, "voc2012_seg_val")[0]["mask"].max() == 7
    write_image(year, "2007_000002", mask=8)
    assert open_voc(other_folder, "voc2012_seg_val")[0]["mask"].max() == 8


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("JPEGImages/2007_000002.jpg", "val.txt lists 1 .* 1 of .* JPEGImages/2007_000002.jpg"),
        ("Annotations/2007_000002.xml", "1 of their files are missing: Annotations/2007_000002"),
        ("SegmentationClass/2007_000002.png", "missing: SegmentationClass/2007_000002.png"),
    ],
)
def test_a_missing_file_is_named_before_any_is_read(voc, remove, message):
    (voc / "VOCdevkit/VOC2012" / remove).unlink()
    with pytest.raises(ValueError, match=message):
        open_voc(voc, "voc2012_seg_val")


def test_an_empty_file_is_named(voc):
    (voc / "VOCdevkit/VOC2012/JPEGImages/2007_000002.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="2007_000002.jpg is empty"):
        voc_config(voc, splits=["voc2012_seg_val"])
    options = {"data_dir": voc, "skip_bad": True}
    examples = load_examples("voc", "voc2012_main_train", **options)
    assert examples.ids == ["2007_000003", "2007_000001"]
    assert "2007_000002.jpg (0 bytes) is no image" in examples.skipped[0]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("JPEGImages/2007_000002.jpg", r"2007_000002.jpg \(\d+ bytes\) is no image"),
        ("SegmentationClass/2007_000002.png", r"2007_000002.png \(\d+ bytes\) is truncated"),
        ("Annotations/2007_000002.xml", "2007_000002.xml is not a whole VOC annotation"),
    ],
)
def test_a_truncated_file_is_named_and_makes_no_copy(voc, tmp_path, file, message):
    path = voc / "VOCdevkit/VOC2012" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=message):
        open_voc(voc, "voc2012_seg_val")[0]
    builder = VocDevkit(
        data_dir=tmp_path / "own", config=voc_config(voc, splits=["voc2012_seg_val"])
    )
    with pytest.raises(ValueError, match=message):
        builder.download_and_prepare(file_format="array_record")
    assert not list((tmp_path / "own").rglob("*array_record*"))


def test_folders_that_are_no_voc_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="nowhere does not exist; the original layout is VOCdevkit"
    ):
        voc_splits(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds neither VOCdevkit nor a year such as VOC2012"):
        voc_splits(tmp_path)
    (tmp_path / "VOC2012" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(ValueError, match="no image list: expected .* VOC2012/ImageSets/Segmentat"):
        voc_splits(tmp_path)
    write_list(tmp_path / "VOC2012", "Segmentation/val", [])
    with pytest.raises(ValueError, match="val.txt lists no image"):
        voc_config(tmp_path)


def test_unknown_names_are_named_with_the_known_ones(voc):
    with pytest.raises(ValueError, match="unknown dataset 'ade'; the known ones are scenes, voc"):
        open_dataset("ade", "train")
    with pytest.raises(ValueError, match="has no split voc2012_seg_test; it has voc2007_main_test"):
        open_voc(voc, "voc2012_seg_test")
    with pytest.raises(ValueError, match="voc needs data_dir"):
        open_dataset("voc", "voc2012_seg_val")


def test_masks_must_fit_their_image_and_hold_classes(voc):
    year = voc / "VOCdevkit" / "VOC2012"
    path = year / "SegmentationClass" / "2007_000002.png"
    write_image(year, "2007_000002", mask=77)
    with pytest.raises(ValueError, match=r"2007_000002.png holds \[77\]"):
        open_voc(voc, "voc2012_seg_val")[0]
    Image.new("L", (10, 10)).save(path)
    with pytest.raises(ValueError, match=r"is \(10, 10\), its image is \(30, 40\)"):
        open_voc(voc, "voc2012_seg_val")[0]
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(ValueError, match="has mode RGB"):
        open_voc(voc, "voc2012_seg_val")[0]


def test_annotations_of_unknown_classes_are_refused(tmp_path):
    path = tmp_path / "a.xml"
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3.5</xmax><ymax>4</ymax></bndbox>"
    text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
    path.write_text(text)
    objects = read_objects(path)
    np.testing.assert_array_equal(objects["boxes"], [[0, 1, 2.5, 3]])
    assert objects["label"] == [8] and objects["difficult"] == [False]
    for broken in (text.replace("cat", "background"), text.replace("cat", "unicorn")):
        path.write_text(broken)
        with pytest.raises(ValueError, match="a.xml is not a whole VOC annotation: unknown class"):
            read_objects(path)
    path.write_text(text.replace("<xmax>3.5</xmax>", ""))
    with pytest.raises(ValueError, match="a.xml is not a whole VOC annotation"):
        read_objects(path)


def test_real_photographs(shared, tmp_path):
    source = tmp_path / "VOC2012"
    real = shared / "voc-mini" / "VOCdevkit" / "VOC2012"
    if not real.is_dir():
        pytest.skip("no voc-mini in the folder named shared")
    ids = (real / "ImageSets/Segmentation/val.txt").read_text().split()[:3]
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (source / folder).mkdir(parents=True)
        for path in [p for i in ids for p in (real / folder).glob(f"{i}.*")]:
            (source / folder / path.name).symlink_to(path)
    write_list(source, "Segmentation/val", ids)

    examples = open_dataset("voc", "voc2012_seg_val", data_dir=tmp_path)
    assert [example["image_id"] for example in examples] == ids
    for example in examples:
        height, width, _ = example["image"].shape
        assert example["mask"].shape == (height, width, 1) and example["has_mask"]
        boxes, labels = example["objects"]["boxes"], example["objects"]["label"]
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width - 1, height - 1]).all()
        # Every class with a box has pixels, and the other way round.
        drawn = set(np.unique(example["mask"])) - {0, VOID}
        assert drawn == set(labels)
    assert len(voc_splits(shared / "voc-mini")) == 7


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for first_example, second_example in zip(first, second, strict=True):
        assert (
            first_example["image_id"] == second_example["image_id"]
            and first_example["has_mask"] == second_example["has_mask"]
        )
        for name in ("image", "mask"):
            np.testing.assert_array_equal(first_example[name], second_example[name])
        for name in ("boxes", "label", "difficult"):
            np.testing.assert_array_equal(
                first_example["objects"][name], second_example["objects"][name]
            )


def write_sbd(folder, image_id, value, *, size=(40, 30)):
    (folder / "cls").mkdir(parents=True, exist_ok=True)
    mask = np.full(size[::-1], value, np.uint8)
    content = {"GTcls": {"Segmentation": mask, "CategoriesPresent": np.array([[value]])}}
    scipy.io.savemat(folder / "cls" / f"{image_id}.mat", content)


def archive(folder, path, mode="w"):
    """Put a folder into a tar, as `tar -cf path folder` does."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:
        tar.add(folder, folder.name)
    return path


@pytest.fixture
def tars(voc):
    """The same VOC as tar files, with nothing extracted."""
    tars = voc.parent / "tars"
    for year, name in (
        ("VOC2012", "VOCtrainval_11-May-2012.tar"),
        ("VOC2007", "VOCtest_06-Nov-2007.tar"),
    ):
        kit = voc.parent / year / "VOCdevkit"
        shutil.copytree(voc / "VOCdevkit" / year, kit / year)
        archive(kit, tars / name)
    return tars


def test_tars_give_what_folders_give(voc, tars):
    before = snapshot(tars)
    assert voc_splits(tars) == voc_splits(voc)
    for split in voc_splits(voc):
        assert_same(open_voc(voc, split), open_voc(tars, split))
    assert snapshot(tars) == before


def test_a_folder_and_a_tar_complete_each_other(voc, tars):
    expected = open_voc(voc, "voc2012_main_train")
    shutil.copytree(voc / "VOCdevkit", tars / "VOCdevkit")
    (tars / "VOCdevkit/VOC2012/JPEGImages/2007_000003.jpg").unlink()
    assert_same(expected, open_voc(tars, "voc2012_main_train"))


def test_what_is_missing_from_a_tar_is_named_with_where_to_get_it(voc, tars):
    kit = voc.parent / "VOC2012" / "VOCdevkit"
    for name in ("2007_000001", "2007_000003"):
        (kit / "VOC2012/JPEGImages" / f"{name}.jpg").unlink()
    (kit / "VOC2012/Annotations/2007_000003.xml").unlink()
    archive(kit, tars / "VOCtrainval_11-May-2012.tar")
    with pytest.raises(ValueError) as error:
        open_voc(tars, "voc2012_main_train")
    message = str(error.value)
    assert (
        "VOC2012/ImageSets/Main/train.txt lists 3 images, and 3 of their files are missing: "
        "JPEGImages/2007_000003.jpg, Annotations/2007_000003.xml, JPEGImages/2007_000001.jpg "
        "(2 of JPEGImages, 1 of Annotations);"
    ) in message
    assert "VOC2012 can be had from https://" in message and "VOC2007" not in message


def test_a_tar_cut_short_is_named_before_any_file_is_read(tars):
    path = tars / "VOCtrainval_11-May-2012.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="VOCtrainval_11-May-2012.tar is not a whole archive"):
        open_voc(tars, "voc2012_seg_val")


def test_a_changed_tar_is_read_anew(voc, tars):
    assert open_voc(tars, "voc2012_seg_val")[0]["mask"].max() == 15
    kit = voc.parent / "VOC2012" / "VOCdevkit"
    write_image(kit / "VOC2012", "2007_000002", mask=7)
    archive(kit, tars / "VOCtrainval_11-May-2012.tar")
    assert open_voc(tars, "voc2012_seg_val")[0]["mask"].max() == 7


@pytest.mark.parametrize("packed", [False, True])
def test_lists_of_the_paper(voc, packed):
    year = voc / "VOCdevkit" / "VOC2012"
    (year / "ImageSets/Segmentation/train_aug.txt").unlink()
    shutil.rmtree(year / "SegmentationClassAug")
    write_image(year, "2008_000004", mask=4)
    write_list(year, "Segmentation/train", ["2008_000004"])
    write_list(year.parent / "VOC2011", "Segmentation/train", ["2008_000004"])
    write_list(year.parent / "VOC2011", "Segmentation/val", ["2007_000002", "2007_000003"])
    sbd = voc / "benchmark_RELEASE" / "dataset"
    for image_id, value in (("2007_000002", 5), ("2007_000003", 6), ("2008_000004", 8)):
        write_sbd(sbd, image_id, value)
    write_sbd(sbd, "2007_000001", 9, size=(20, 50))
    for name, ids in (("train", ["2007_000003", "2008_000004"]), ("val", ["2007_000001"])):
        (sbd / f"{name}.txt").write_text("\n".join(ids))
    if packed:
        archive(sbd.parent, voc / "benchmark.tgz", "w:gz")
        shutil.rmtree(sbd.parent)

    def ids_and_masks(split):
        return [(e["image_id"], int(e["mask"].max()), e["has_mask"]) for e in open_voc(voc, split)]

    # The kit's mask where it has one, else SBD's; photographs and boxes are VOC2012's.
    assert ids_and_masks("seg11valid") == [("2007_000002", 15, True)]
    assert ids_and_masks("fcn_train") == [("2007_000003", 6, True), ("2008_000004", 4, True)]
    assert ids_and_masks("fcn_star_train") == [
        ("2007_000001", 9, True),
        ("2007_000003", 6, True),
        ("2008_000004", 4, True),
    ]
    assert ids_and_masks("voc07_test") == [("000004", VOID, False)]


def test_lists_of_the_paper_may_be_sliced_and_keep_their_boxes(voc):
    examples = open_voc(voc, "fcn_star_train[:1]")
    assert [e["image_id"] for e in examples] == ["2007_000002"]
    np.testing.assert_array_equal(examples[0]["objects"]["label"], [1, 20])


def test_masks_that_the_paper_needs_are_named(voc):
    year = voc / "VOCdevkit" / "VOC2012"
    shutil.rmtree(year / "SegmentationClassAug")
    message = (
        r"fcn_star_train, made of VOC2012/ImageSets/Segmentation/train_aug.txt \(2\), lists 2 "
        r"images, and 1 of their files are missing: SegmentationClass/2007_000001.png .*"
        "benchmark.tgz.*SegmentationClassAug.zip"
    )
    with pytest.raises(ValueError, match=message):
        open_voc(voc, "fcn_star_train")


def test_both_counts_are_said(voc, caplog):
    open_voc(voc, "voc07_test")
    assert [record.getMessage() for record in caplog.records] == [
        "voc07_test holds 1 images here, made of VOC2007/ImageSets/Main/test.txt (1); the paper's "
        "list has 4,952"
    ]


def test_augmented_masks_may_come_from_sbd(voc):
    write_sbd(voc / "benchmark_RELEASE" / "dataset", "2007_000003", 6)
    for masks, has_mask in (("voc", 1), ("aug", 3)):
        config = voc_config(voc, splits=["voc2012_main_train"], masks=masks)
        rows = config.files["voc2012_main_train"]
        assert sum(row[-1] is not None for row in rows) == has_mask


def test_real_photographs_in_a_tar(shared, tmp_path):
    real = shared / "voc-mini" / "VOCdevkit"
    if not real.is_dir():
        pytest.skip("no voc-mini in the folder named shared")
    kit = tmp_path / "folder" / "VOCdevkit"
    for year, list_name, count in (
        ("VOC2012", "Segmentation/train_aug", 6),
        ("VOC2007", "Main/test", 3),
    ):
        ids = (real / year / "ImageSets" / f"{list_name}.txt").read_text().split()[:count]
        write_list(kit / year, list_name, ids)
        for part in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug"):
            for path in [p for i in ids for p in (real / year / part).glob(f"{i}.*")]:
                (kit / year / part).mkdir(exist_ok=True)
                shutil.copy(path, kit / year / part)
    archive(kit, tmp_path / "tar" / "VOC.tar")
    for split, count in (("voc2012_seg_train_aug", 6), ("fcn_star_train", 6), ("voc07_test", 3)):
        folder, tar = (
            open_dataset("voc", split, data_dir=tmp_path / name) for name in ("folder", "tar")
        )
        assert len(folder) == count
        assert_same(folder, tar)
