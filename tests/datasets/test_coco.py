"""COCO folders: made-up ones, with boxes against a loop and outlines against pycocotools."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from dag_jax import models
from dag_jax.datasets import CLASS_NAMES, COCO_NAMES, coco, load_examples, open_dataset
from dag_jax.datasets.coco import fill

HEIGHT, WIDTH = 40, 50
# The ids that COCO left out.
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [number for number in range(1, 91) if number not in GAPS]
PERSON, TRAIN, TOOTHBRUSH = 1, 7, 90
# By pycocotools 2.0.11.
# Rows 0 to 19, and from row 25 on the columns from 10 on.
RUNS = "0d0d" + "0" * 20 + "A?" + "0" * 77 + "\\O"
POLYGON = [2.3, 1.7, 15.2, 3.1, 17.6, 12.4, 9.9, 8.2, 4.1, 13.3]
POLYGON_ROWS = """
....................
....................
...######...........
...############.....
...#############....
...#############....
...#############....
...#############....
...#######.######...
....####....#####...
....###.......###...
....##..........#...
....#...............
....................
....................
....................
"""


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


CONTENT = {
    # Not in the order of their ids: that of the file does not matter.
    "categories": [
        {"id": number, "name": name}
        for number, name in reversed(list(zip(IDS, COCO_NAMES, strict=True)))
    ],
    "images": [
        {"id": 9, "file_name": "000009.png", "height": HEIGHT, "width": WIDTH},
        {"id": 4, "file_name": "000004.png", "height": HEIGHT, "width": WIDTH},
        {"id": 5, "file_name": "000005.png", "height": HEIGHT, "width": WIDTH},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 9,
            "category_id": TOOTHBRUSH,
            "bbox": [4, 5, 10, 12],
            "iscrowd": 0,
            "segmentation": rectangle(4, 5, 14, 17),
        },
        {
            "id": 2,
            "image_id": 9,
            "category_id": PERSON,
            "bbox": [10.5, 9.25, 20.25, 30.5],
            "segmentation": rectangle(10, 9, 31, 40),
        },
        {
            "id": 3,
            "image_id": 5,
            "category_id": TRAIN,
            "bbox": [0, 0, WIDTH, HEIGHT],
            "iscrowd": 1,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": RUNS},
        },
    ],
}


def write(folder, content=CONTENT):
    rng = np.random.default_rng(0)
    for place in ("annotations", "val2017"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))
    for image in CONTENT["images"]:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "val2017" / image["file_name"])
    return folder


def open_coco(folder, split="val2017"):
    return open_dataset("coco", split, data_dir=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("coco"))


def test_categories_become_classes_by_their_ids(folder):
    examples = load_examples("coco", "val2017", data_dir=folder)
    assert examples.classes == (*COCO_NAMES, "background") and examples.void == 255
    assert examples.ids == ["000009", "000004", "000005"]
    for example, image in zip(examples, CONTENT["images"], strict=True):
        with Image.open(folder / "val2017" / image["file_name"]) as stored:
            np.testing.assert_array_equal(example["image"], np.array(stored))
        drawn = [a for a in CONTENT["annotations"] if a["image_id"] == image["id"]]
        objects = example["objects"]
        assert len(objects["label"]) == len(drawn)
        for box, label, difficult, entry in zip(
            objects["boxes"], objects["label"], objects["difficult"], drawn, strict=True
        ):
            x, y, width, height = entry["bbox"]
            assert box.tolist() == [x, y, x + width - 1, y + height - 1]
            assert IDS[label] == entry["category_id"]
            assert difficult == bool(entry.get("iscrowd", 0))


def test_masks_are_drawn_from_outlines(folder):
    examples = load_examples("coco", "val2017", data_dir=folder)
    background = len(COCO_NAMES)
    mask = np.full((HEIGHT, WIDTH), background)
    mask[5:17, 4:14] = 79
    mask[9:40, 10:31] = 0
    mask[9:17, 10:14] = 255  # of both
    np.testing.assert_array_equal(examples[0]["mask"][:, :, 0], mask)
    assert (examples[1]["mask"] == background).all() and examples[1]["has_mask"]
    mask = np.full((HEIGHT, WIDTH), background)
    mask[:20], mask[25:, 10:] = 6, 6
    np.testing.assert_array_equal(examples[2]["mask"][:, :, 0], mask)


def test_polygons_are_pycocotools_but_where_an_edge_touches_a_centre():
    lines = POLYGON_ROWS.split()
    expected = np.array([[character == "#" for character in line] for line in lines])
    inside = fill([POLYGON], expected.shape)
    assert (inside != expected).sum() <= 3 < 100 < expected.sum()
    # Where the polygon starts, and its direction, do not matter.
    turned = fill([POLYGON[4:] + POLYGON[:4]], expected.shape)
    np.testing.assert_array_equal(turned, inside)
    backwards = np.reshape(POLYGON, (-1, 2))[::-1].ravel().tolist()
    np.testing.assert_array_equal(fill([backwards], expected.shape), inside)


def test_polygons_are_filled_by_the_even_odd_rule():
    polygon = np.random.default_rng(1).uniform(-5, 30, (7, 2))
    expected = np.zeros((24, 28), bool)
    for row, column in np.ndindex(expected.shape):
        y, x = row + 0.5, column + 0.5
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
            if (x0 <= x) != (x1 <= x) and y0 + (x - x0) * (y1 - y0) / (x1 - x0) < y:
                expected[row, column] ^= True
    assert expected.any()
    np.testing.assert_array_equal(fill([polygon.ravel().tolist()], expected.shape), expected)


def test_run_lengths_go_down_the_columns():
    inside = np.random.default_rng(0).random((7, 5)) < 0.5
    changes = np.flatnonzero(np.diff(inside.T.ravel(), prepend=False))
    counts = np.diff([0, *changes, inside.size]).tolist()
    np.testing.assert_array_equal(fill({"size": [7, 5], "counts": counts}, (7, 5)), inside)


def test_an_image_with_an_object_without_outline_has_no_mask(tmp_path):
    content = copy.deepcopy(CONTENT)
    del content["annotations"][1]["segmentation"]
    examples = open_coco(write(tmp_path, content))
    assert [example["has_mask"] for example in examples] == [False, True, True]
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    examples = open_coco(write(tmp_path, content))
    assert not any(example["has_mask"] for example in examples)


def test_masks_of_coco_stuff_come_first(tmp_path):
    write(tmp_path)
    stuff = tmp_path / "stuffthingmaps/val2017"
    stuff.mkdir(parents=True)
    stored = np.full((HEIGHT, WIDTH), 181, np.uint8)
    stored[:10], stored[10:20], stored[20:30] = TOOTHBRUSH - 1, PERSON - 1, 255
    for image in CONTENT["images"]:
        Image.fromarray(stored).save(stuff / image["file_name"])
    mask = open_coco(tmp_path)[0]["mask"]
    assert [mask[row, 0, 0] for row in (0, 10, 20, 30)] == [79, 0, 255, 80]
    stored[0, 0] = 200
    Image.fromarray(stored).save(stuff / "000009.png")
    with pytest.raises(ValueError, match=r"000009.png holds \[200\], which are no classes"):
        open_coco(tmp_path)[0]
    Image.fromarray(stored[1:]).save(stuff / "000009.png")
    with pytest.raises(ValueError, match=r"is \(39, 50\), its image is \(40, 50\)"):
        open_coco(tmp_path)[0]
    (stuff / "000004.png").unlink()
    with pytest.raises(ValueError, match="1 of its files are missing, the first .*000004.png"):
        open_coco(tmp_path)


def test_models_of_voc_meet_coco_by_name(folder):
    examples = load_examples("coco", "val2017", data_dir=folder)
    about = models.About("segmentation", False, CLASS_NAMES, None, tuple(range(21)), "x")
    shared = models.share_classes(about, examples.classes)
    assert len(shared.of_model) == 21
    voc = examples.relabelled(CLASS_NAMES, shared.to_model)
    person, train = CLASS_NAMES.index("person"), CLASS_NAMES.index("train")
    assert voc[0]["objects"]["label"].tolist() == [person]  # toothbrushes are left out
    assert sorted(np.unique(voc[0]["mask"])) == [0, person, 255]
    assert sorted(np.unique(voc[2]["mask"])) == [0, train]


def test_a_split_of_voc_s_classes_draws_them_alone(folder, tmp_path):
    examples = load_examples("coco", "val2017_voc", data_dir=folder)
    assert examples.classes == CLASS_NAMES and examples.ids == ["000009", "000004", "000005"]
    person, train = CLASS_NAMES.index("person"), CLASS_NAMES.index("train")
    mask = np.zeros((HEIGHT, WIDTH), int)
    mask[9:40, 10:31] = person  # under the toothbrush, too
    np.testing.assert_array_equal(examples[0]["mask"][:, :, 0], mask)
    assert examples[0]["objects"]["label"].tolist() == [person]
    assert not examples[1]["mask"].any() and examples[1]["has_mask"]
    assert sorted(np.unique(examples[2]["mask"])) == [0, train]
    numbers = coco._VOC_IDS
    names = [COCO_NAMES[IDS.index(number)] for number in numbers]
    about = models.About("segmentation", False, CLASS_NAMES, None, tuple(range(21)), "x")
    assert models.share_classes(about, tuple(names)).to_model == tuple(range(1, 21))
    content = {**CONTENT, "categories": [{"id": 91, "name": "tool"}], "annotations": []}
    with pytest.raises(ValueError, match="none of its categories has the id of one of VOC's"):
        open_coco(write(tmp_path, content), "val2017_voc")


def test_other_categories_are_classes_too(tmp_path):
    content = copy.deepcopy(CONTENT)
    content["categories"] = [
        {"id": number, "name": name}
        for number, name in ((PERSON, "worker"), (TRAIN, "crane"), (TOOTHBRUSH, "tool"))
    ]
    examples = open_coco(write(tmp_path, content))
    assert examples.classes == ("worker", "crane", "tool", "background")
    content["categories"].append({"id": 91, "name": "background"})
    assert open_coco(write(tmp_path, content)).classes[3:] == ("background",)


def test_splits_can_be_cut(folder):
    assert [e["image_id"] for e in open_coco(folder, "val2017[1:]")] == ["000004", "000005"]
    assert len(open_coco(folder, "val2017[:2]")) == 2 and open_coco(folder)[-1]["has_mask"]
    with pytest.raises(ValueError, match="neither a name nor name"):
        open_coco(folder, "val2017[:10%]")
    with pytest.raises(IndexError, match="example 3 of 3"):
        open_coco(folder)[3]
    assert [e["image_id"] for e in open_coco(folder, "val2017[-1:]")] == ["000005"]
    for part in ("2:1", "3:", ":0"):
        with pytest.raises(ValueError, match="is no part of val2017 that holds an example"):
            open_coco(folder, f"val2017[{part}]")


def changed(kind, index, **entries):
    content = copy.deepcopy(CONTENT)
    content[kind][index] |= entries
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed("annotations", 0, bbox=[4, 5, -10, 12]),
            r"000009.png: annotation 1 has bbox \[4",
        ),
        (changed("annotations", 0, bbox=[4, 5, 0, 12]), "has no area"),
        (changed("annotations", 0, bbox=[4, 5, float("nan"), 2]), "nan.* finite numbers"),
        (changed("annotations", 0, bbox=[4, 5, float("inf"), 2]), "finite numbers"),
        (changed("annotations", 0, bbox=[4, 5, 10**400, 2]), "finite numbers"),
        (changed("annotations", 0, bbox=[4, 5, 6]), "6., not .x, y, width, height"),
        (changed("annotations", 0, bbox=None), "bbox None, not"),
        (changed("annotations", 0, bbox=["4", 5, 6, 7]), "bbox .'4', 5, 6, 7., not"),
        (changed("annotations", 0, bbox=[50, 5, 6, 7]), "outside of its 50 x 40 pixels"),
        (
            changed("annotations", 0, category_id=12),
            "annotation 1 has category_id 12, which",
        ),
        (changed("annotations", 0, category_id=[1]), "category_id .1., which is not listed"),
        (changed("annotations", 0, image_id=7), "annotation 1 has image_id 7, which is not"),
        (changed("annotations", 0, iscrowd=2), "annotation 1 has iscrowd 2, neither 0 nor 1"),
        (changed("annotations", 0, id=2), "annotations has the id 2 twice"),
        (changed("annotations", 0, id=None), "annotations has the entry .* without an id"),
        (changed("images", 0, id=4), "images has the id 4 twice"),
        (changed("images", 0, file_name="000004.png"), "several images are called '000004'"),
        (changed("images", 0, file_name="../000004.png"), "image 9 has the file_name '../000004"),
        (changed("images", 0, file_name="7.png"), "1 of its files are missing, the first .*/7.png"),
        (changed("images", 0, width="50"), "image 9 has height and width .40, '50'"),
        (changed("categories", 0, id=1), "categories has the id 1 twice"),
        (changed("categories", 0, name="person"), "several categories are called 'person'"),
        (changed("categories", 0, name=None), "category 90 is called None"),
        ({**CONTENT, "images": []}, "lists no image"),
        ({"images": []}, "has no list of categories"),
        ([], "holds a list, not COCO's lists"),
    ],
)
def test_what_cannot_be_is_refused_with_file_and_value(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"instances_val2017.json: .*{message}"):
        open_coco(write(tmp_path, content))[0]


def test_an_object_that_cannot_be_costs_its_image_alone(tmp_path):
    content = changed("annotations", 0, bbox=[4, 5, 10, 0])  # as one of COCO's own train2017
    options = {"data_dir": write(tmp_path, content), "skip_bad": True}
    examples = load_examples("coco", "val2017", **options)
    assert examples.ids == ["000004", "000005"] and len(examples.skipped) == 1
    assert "annotation 1 has bbox [4, 5, 10, 0], which has no area" in examples.skipped[0]


@pytest.mark.parametrize(
    "outline",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [["1", 2, 3, 4, 5, 6]],
        "0d0d",
        {"size": [WIDTH, HEIGHT], "counts": RUNS},
        {"size": [HEIGHT, WIDTH], "counts": RUNS[:-1]},
        {"size": [HEIGHT, WIDTH], "counts": RUNS + "é"},
        {"size": [HEIGHT, WIDTH], "counts": "o" * 5000},
        {"size": [HEIGHT, WIDTH], "counts": [10**12, 5]},
        {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]},
        {"size": [HEIGHT, WIDTH]},
    ],
)
def test_outlines_that_cannot_be_are_refused(tmp_path, outline):
    examples = open_coco(write(tmp_path, changed("annotations", 0, segmentation=outline)))
    with pytest.raises(ValueError, match=r"instances_val2017.json: object at .* of 000009.png: "):
        examples[0]


def test_files_that_are_missing_or_broken_are_named(tmp_path, folder):
    with pytest.raises(ValueError, match="coco needs data_dir"):
        open_dataset("coco", "val2017")
    with pytest.raises(ValueError, match="nowhere does not exist; COCO is extracted as"):
        open_coco(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no split train2017: .* is missing; it has val2017;"):
        open_coco(folder, "train2017")
    path = write(tmp_path) / "annotations/instances_val2017.json"
    Image.new("RGB", (30, 30)).save(tmp_path / "val2017/000004.png")
    with pytest.raises(ValueError, match=r"000004.png is \(30, 30\), .* says \(40, 50\)"):
        open_coco(tmp_path)[1]
    for damaged in (path.read_bytes()[:-5], b"\xff\xfe{", b"[" * 10**6):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="instances_val2017.json is not a whole JSON file"):
            open_coco(tmp_path)
    path.write_text(json.dumps(CONTENT))
    (tmp_path / "val2017").rename(tmp_path / "other")
    with pytest.raises(ValueError, match="val2017, the photographs of .* is missing"):
        open_coco(tmp_path)
