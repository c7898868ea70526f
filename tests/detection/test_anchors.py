import numpy as np
import pytest

from dag_jax.detection import centred_anchors, generate_anchors, tile_anchors

# What the comment in py-faster-rcnn's generate_anchors.py lists, from MATLAB and thus 1-based.
ONE_BASED = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]


def test_the_nine_anchors_of_py_faster_rcnn():
    np.testing.assert_array_equal(generate_anchors(), np.float32(ONE_BASED) - 1)
    assert generate_anchors().dtype == np.float32


def test_miniature_sizes():
    anchors = generate_anchors((24, 40, 64), base=8)
    sides = anchors[:, 2:] - anchors[:, :2] + 1
    # An 8 x 8 box becomes 11 x 6 and 6 x 12 at the ratios 0.5 and 2: 11 * 0.5 = 5.5 rounds to 6.
    shapes = np.array([[11, 6], [8, 8], [6, 12]])
    expected = (shapes[:, None] * np.array([3, 5, 8])[None, :, None]).reshape(9, 2)
    np.testing.assert_array_equal(sides, expected)
    np.testing.assert_array_equal(anchors[:, :2] + anchors[:, 2:], np.full((9, 2), 7))


def test_tiles_run_along_anchors_then_columns_then_rows():
    anchors = generate_anchors((16,), ratios=(0.5, 1, 2))
    tiles = tile_anchors(anchors, (2, 3), stride=16)
    assert tiles.shape == (18, 4)
    for row in range(2):
        for column in range(3):
            for a in range(3):
                expected = anchors[a] + 16 * np.float32([column, row, column, row])
                np.testing.assert_array_equal(tiles[(row * 3 + column) * 3 + a], expected)


def test_the_first_anchors_of_torchvision():
    # AnchorGenerator(((32,),), ((0.5, 1, 2),)).cell_anchors, which are edges.
    edges = np.float32([[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    np.testing.assert_array_equal(centred_anchors((32,)), edges - np.float32([0, 0, 1, 1]))
    assert centred_anchors((32,)).dtype == np.float32


def test_centred_anchors_run_along_sizes_then_ratios():
    anchors = centred_anchors((256, 322, 406))
    roots = np.repeat(np.sqrt([0.5, 1, 2]), 3)
    sizes = np.tile([256, 322, 406], 3)
    exact = np.stack([sizes / roots, sizes * roots], axis=1)
    np.testing.assert_array_equal(anchors[:, :2] + anchors[:, 2:], np.full((9, 2), -1))
    np.testing.assert_allclose(anchors[:, 2:] - anchors[:, :2] + 1, exact, atol=1)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="sizes \\(32, 0\\)"):
        centred_anchors((32, 0))
    with pytest.raises(ValueError, match="base 0"):
        generate_anchors(base=0)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        tile_anchors(np.zeros(4, np.float32), (2, 2), stride=8)
