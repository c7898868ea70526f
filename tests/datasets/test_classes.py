import numpy as np

from dag_jax.datasets import CITYSCAPES_NAMES, CLASS_NAMES, VOID, VOID_COLOUR, palette


def test_voc_s_classes_stand_in_voc_s_order():
    assert len(CLASS_NAMES) == 21 == len(set(CLASS_NAMES))
    assert CLASS_NAMES[0] == "background"
    assert list(CLASS_NAMES[1:]) == sorted(CLASS_NAMES[1:])  # the kit lists them by alphabet
    assert [CLASS_NAMES[index] for index in (1, 12, 15, 20)] == [
        "aeroplane",
        "dog",
        "person",
        "tvmonitor",
    ]
    assert VOID not in range(len(CLASS_NAMES))


def test_cityscapes_classes_stand_in_the_order_of_train_ids():
    assert len(CITYSCAPES_NAMES) == 19 == len(set(CITYSCAPES_NAMES))
    assert [CITYSCAPES_NAMES[index] for index in (0, 6, 11, 18)] == [
        "road",
        "traffic light",
        "person",
        "bicycle",
    ]


def test_the_palette_is_the_kit_s():
    colours = palette(256)
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert colours[[0, 1, 2, 3, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert tuple(colours[VOID].tolist()) == VOID_COLOUR


def test_classes_of_any_number_have_colours_of_their_own():
    assert len(np.unique(palette(1000), axis=0)) == 1000
    np.testing.assert_array_equal(palette(7), palette(21)[:7])
