"""Examples of anybody's dataset: what a label means, and what is wrong with an example."""

import numpy as np
import pytest

from dag_jax.datasets import ExampleSet, resize

CLASSES = ("sky", "road", "car")
MASK = np.array([[0, 1, 2], [255, 2, 2]], np.uint8)
OBJECTS = {"boxes": [[0, 0, 1, 1], [2, 0, 2, 1]], "label": [2, 1]}


def example(image_id="a", **changes):
    whole = {"image_id": image_id, "image": np.zeros((2, 3, 3), np.uint8), "mask": MASK}
    return {name: value for name, value in (whole | changes).items() if value is not None}


def only(examples):
    (whole,) = examples
    return whole


def test_an_example_is_completed():
    whole = only(ExampleSet([example(objects=OBJECTS)], CLASSES))
    assert whole["mask"].shape == (2, 3, 1) and whole["has_mask"] is True
    objects = whole["objects"]
    assert objects["boxes"].dtype == np.float32 and objects["boxes"].shape == (2, 4)
    assert objects["label"].dtype == np.int32 and objects["label"].tolist() == [2, 1]
    assert objects["difficult"].tolist() == [False, False]


@pytest.mark.parametrize("mask", [None, "key"])
def test_an_image_that_nobody_segmented_is_for_detectors_alone(mask):
    unsegmented = example(mask=None) | ({"mask": None} if mask else {})
    examples = ExampleSet([unsegmented, example("b")], CLASSES)
    assert examples[0]["has_mask"] is False and (examples[0]["mask"] == 255).all()
    assert examples.with_masks().ids == ["b"]
    assert only(ExampleSet([unsegmented], CLASSES, void=-1))["mask"].tolist() == [[[-1]] * 3] * 2


def test_nothing_is_an_object_where_none_is_given():
    objects = only(ExampleSet([example()], CLASSES))["objects"]
    assert objects["boxes"].shape == (0, 4) and len(objects["label"]) == 0
    empty = {"boxes": [], "label": [], "difficult": []}
    assert only(ExampleSet([example(objects=empty)], CLASSES))["objects"]["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((2, 3, 3))}, r"its image is float64\[2, 3, 3\]; it must be u8\[H, W"),
        ({"image": np.zeros((3, 2), np.uint8)}, r"its image is uint8\[3, 2\]"),
        ({"image": np.zeros((0, 3, 3), np.uint8)}, r"its image is uint8\[0, 3, 3\]"),
        ({"mask": np.zeros((3, 2), np.uint8)}, r"its mask is uint8\[3, 2, 1\]; .* \[2, 3, 1\]"),
        ({"mask": np.zeros((2, 3))}, r"its mask is float64\[2, 3, 1\]; it must be integers"),
        ({"mask": MASK + 1}, "its mask has the label 3, which is none of 3 classes and not void"),
        ({"mask": np.full((2, 3), -1)}, "its mask has the label -1"),
        ({"objects": {"boxes": [[0, 0, 1, 1]]}}, "its objects have no label"),
        ({"objects": OBJECTS | {"label": [1]}}, "2 boxes, 1 labels, 2|1 difficult flags"),
        ({"objects": OBJECTS | {"label": [1, 3]}}, "an object's label is 3, which is none of 3"),
        ({"objects": OBJECTS | {"label": [-1, 1]}}, "an object's label is -1"),
        ({"objects": OBJECTS | {"label": [1.0, 2.0]}}, r"its labels are float64\[2\]; .* integers"),
        ({"objects": OBJECTS | {"boxes": np.zeros((4, 2))}}, r"its boxes are float32\[4, 2\]"),
        ({"objects": OBJECTS | {"boxes": np.full((2, 4), np.nan)}}, "must be finite"),
        (
            {"objects": OBJECTS | {"boxes": [[1, 1, 2, 2], [2, 0, 0, 1]]}},
            "its box .2.0, 0.0, 0.0, 1",
        ),
        ({"objects": OBJECTS | {"boxes": [[1, 1, 2, 2], [1, 1, 0, 1]]}}, "has no pixel of 3 x 2;"),
        ({"objects": OBJECTS | {"boxes": [[1, 1, 2, 2], [3, 0, 4, 1]]}}, "has no pixel of 3 x 2;"),
        ({"objects": OBJECTS | {"boxes": [[0, -2, 2, -1], [0, 0, 1, 1]]}}, "has no pixel of 3 x 2"),
        (
            {"objects": OBJECTS | {"difficult": [0, 2]}},
            r"difficult is \[0, 2\], which must be true",
        ),
        ({"objects": OBJECTS | {"difficult": [True]}}, "2 boxes, 2 labels, 1 difficult flags"),
    ],
)
def test_what_is_wrong_with_an_example_is_named_with_it(changes, message):
    with pytest.raises(ValueError, match=f"example 'odd': .*{message}"):
        ExampleSet([example(), example("odd", **changes)], CLASSES)


def test_examples_have_names_of_their_own():
    with pytest.raises(ValueError, match="several examples have the image_id 'a'"):
        ExampleSet([example(), example("b"), example()], CLASSES)
    with pytest.raises(ValueError, match="several examples have the image_id '7'"):
        ExampleSet([example(7), example("7")], CLASSES)
    for lacking in ("image_id", "image"):
        with pytest.raises(ValueError, match=f"it needs an {lacking[:5]}"):
            ExampleSet([example(**{lacking: None})], CLASSES)


def test_void_is_no_class():
    many = tuple(map(str, range(365)))
    with pytest.raises(ValueError, match="void is 255, which is the class '255': .*-1.* void=None"):
        ExampleSet([], many)
    mask = np.array([[255, 364, 0], [-1, 1, 2]])
    assert ExampleSet([example(mask=mask)], many, void=-1)[0]["mask"].max() == 364
    with pytest.raises(ValueError, match="label -1, which is none of 365 classes"):
        ExampleSet([example(mask=mask)], many, void=None)


def test_a_slice_and_a_pick_are_sets_of_the_same_classes():
    examples = ExampleSet([example(name) for name in "abcd"], CLASSES, void=7 + 248)
    for subset in (examples[1:3], examples.pick([1, 2])):
        assert isinstance(subset, ExampleSet) and subset.ids == ["b", "c"]
        assert (subset.classes, subset.void) == (CLASSES, 255)
    assert examples[-1]["image_id"] == "d" and len(examples) == 4
    assert [item["image_id"] for item in examples] == list("abcd")


def test_labels_become_another_s_and_what_it_lacks_void():
    examples = ExampleSet([example(objects=OBJECTS)], CLASSES)
    relabelled = examples.relabelled(("car", "tree", "sky"), (2, -1, 0))
    whole = only(relabelled)
    assert relabelled.classes == ("car", "tree", "sky") and relabelled.void == 255
    assert whole["mask"][..., 0].tolist() == [[2, 255, 0], [255, 0, 0]]
    assert whole["mask"].dtype == np.uint8
    assert whole["objects"]["label"].tolist() == [0]  # the other was a road
    assert whole["objects"]["boxes"].tolist() == [[0, 0, 1, 1]]
    assert len(whole["objects"]["difficult"]) == 1
    assert only(examples)["objects"]["label"].tolist() == [2, 1]  # as it was


def test_two_classes_may_become_one():
    whole = only(ExampleSet([example(objects=OBJECTS)], CLASSES).relabelled(("all",), (0, 0, 0)))
    assert whole["mask"][..., 0].tolist() == [[0, 0, 0], [255, 0, 0]]
    assert whole["objects"]["label"].tolist() == [0, 0]


def test_255_is_a_class_of_a_model_of_so_many():
    many = tuple(map(str, range(256)))
    relabelled = ExampleSet([example()], CLASSES).relabelled(many, (255, 3, -1))
    whole = only(relabelled)
    assert relabelled.void == -1
    assert whole["mask"][..., 0].tolist() == [[255, 3, -1], [-1, -1, -1]]
    few = relabelled.relabelled(("sky",), [-1] * 255 + [0])
    assert few.void == 255 and only(few)["mask"][..., 0].tolist() == [[0, 255, 255], [255] * 3]


@pytest.mark.parametrize("void", [None, 3, -1])
def test_any_void_becomes_the_new_one(void):
    mask = np.array([[0, 1, 2], [0 if void is None else void, 2, 2]])
    examples = ExampleSet([example(mask=mask)], CLASSES, void=void)
    changed = only(examples.relabelled(("road", "sky", "car"), (1, 0, 2)))
    expected = [[1, 0, 2], [1 if void is None else 255, 2, 2]]
    assert changed["mask"][..., 0].tolist() == expected


def test_a_set_with_nothing_to_change_is_itself():
    examples = ExampleSet([example()], CLASSES)
    assert examples.relabelled(CLASSES, (0, 1, 2)) is examples
    assert examples.relabelled(("Sky", "road", "car"), (0, 1, 2)) is not examples


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_resize_moves_mask_and_box_together(kind):
    mask = np.zeros((40, 60, 1), kind)
    mask[10:20, 30:60] = 7
    image = np.repeat(mask, 3, axis=2).astype(np.uint8) * 20
    objects = {"boxes": [[30, 10, 59, 19]], "label": [7]}
    whole = {"image_id": "a", "image": image, "mask": mask, "objects": objects}
    scaled = resize(only(ExampleSet([whole], tuple("abcdefgh"))), 20)
    assert scaled["image"].shape == (20, 20, 3) and scaled["mask"].shape == (20, 20, 1)
    assert scaled["mask"].dtype == kind
    rows, columns = np.nonzero(scaled["mask"][:, :, 0])
    box = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(scaled["objects"]["boxes"], [box])
    np.testing.assert_array_equal(scaled["image"][:, :, 0], scaled["mask"][:, :, 0] * 20)
