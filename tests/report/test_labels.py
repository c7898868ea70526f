"""Names on pictures: where they stand, and what they do not hide."""

import itertools

import numpy as np
import pytest

from dag_jax.report.labels import Labels

SHAPE, POINTS = (128, 128), 116  # of an image, and the width that it is printed in


def tile(labels, text, place):
    """Return the corners x0, y0, x1, y1 of a name's tile."""
    (x, y), (width, height) = place, labels.size(text)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def overlap(first, second):
    return all(
        max(first[axis], second[axis]) < min(first[axis + 2], second[axis + 2]) for axis in (0, 1)
    )


def on_picture(corners):
    return min(corners) >= -0.51 and max(corners) <= SHAPE[0] - 0.49


def test_a_tile_grows_with_its_letters_and_with_the_picture():
    labels = Labels(SHAPE, POINTS)
    width, height = labels.size("dog")
    assert labels.size("dogdog")[0] > 1.7 * width and labels.size("dogdog")[1] == height
    assert labels.size("犬")[0] > labels.size("d")[0]
    np.testing.assert_allclose(Labels((256, 256), POINTS).size("dog"), (2 * width, 2 * height))


def test_a_name_lies_within_its_region():
    labels = Labels(SHAPE, POINTS)
    region = np.zeros(SHAPE, bool)
    region[70:110, 10:90] = True
    x0, y0, x1, y1 = tile(labels, "person", labels.inside("person", region))
    assert x0 >= 10 - 1 and x1 <= 90 and y0 >= 70 - 1 and y1 <= 110


def letter_a():
    """An A that is a sixth of the picture's width, as one letter of a word is."""
    y, x = np.mgrid[:128, :128]
    legs = np.abs(np.abs(x - 64) - 0.35 * (y - 45)) < 3
    bar = (np.abs(y - 72) < 2) & (np.abs(x - 64) < 10)
    return (legs | bar) & (y >= 45) & (y < 83)


def test_a_name_that_would_hide_a_letter_is_left_out():
    letter = letter_a()
    assert Labels(SHAPE, POINTS).inside("person", letter) is None
    word = letter | np.roll(letter, 38, axis=1) | np.roll(letter, -38, axis=1)
    word[81:83, 12:116] = True  # whose letters touch
    assert Labels(SHAPE, POINTS).inside("person", word) is None


def test_a_name_that_would_stand_out_of_its_region_is_left_out():
    labels = Labels(SHAPE, POINTS)
    region = np.zeros(SHAPE, bool)
    region[30:100, 60 : 60 + round(0.9 * labels.size("person")[0])] = True
    assert labels.inside("person", region) is None
    assert labels.inside("dog", region) is not None


def test_names_of_regions_do_not_lie_on_each_other():
    labels = Labels(SHAPE, POINTS)
    region = np.zeros(SHAPE, bool)
    region[40:90, 30:100] = True
    places = [labels.inside("person", region) for _ in range(3)]
    tiles = [tile(labels, "person", place) for place in places]
    assert not any(overlap(*pair) for pair in itertools.combinations(tiles, 2))
    assert labels.inside("a name that is far too long for it", region) is None


@pytest.mark.parametrize(
    "box, above", [((30, 40, 90, 100), True), ((30, 2, 90, 100), False), ((0, 90, 3, 127), True)]
)
def test_the_name_of_a_box_stands_outside_where_there_is_room(box, above):
    labels = Labels(SHAPE, POINTS)
    corners = tile(labels, "person 0.90", labels.beside("person 0.90", box))
    assert on_picture(corners)
    assert corners[3] <= box[1] + 0.5 if above else corners[1] >= box[3] - 0.5


def test_boxes_at_one_place_have_names_at_several():
    labels = Labels(SHAPE, POINTS)
    tiles = [tile(labels, "dog 0.9", labels.beside("dog 0.9", (20, 40, 110, 100))) for _ in "1234"]
    assert not any(overlap(*pair) for pair in itertools.combinations(tiles, 2))
    whole = [tile(labels, "dog 0.9", labels.beside("dog 0.9", (0, 0, 127, 127))) for _ in "12"]
    assert all(map(on_picture, whole)) and not overlap(*whole)
