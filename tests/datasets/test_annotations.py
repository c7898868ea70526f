import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

from dag_jax.datasets.annotations import read_mask

MASK = np.random.default_rng(0).choice([0, 3, 20], (30, 40)).astype(np.uint8)


def write_sbd(path, mask, variable="GTcls"):
    """Write a mask as SBD has it: a struct with outlines, sparse, one of each class."""
    outlines = np.empty((20, 1), object)
    for row in range(20):
        outlines[row, 0] = scipy.sparse.csc_matrix(mask == row + 1, dtype=np.float64)
    content = {
        "Boundaries": outlines,
        "Segmentation": mask,
        "CategoriesPresent": np.setdiff1d(mask, [0])[:, None],
    }
    scipy.io.savemat(path, {variable: content}, do_compression=True)


def test_masks_of_sbd(tmp_path):
    path = tmp_path / "a.mat"
    write_sbd(path, MASK)
    mask = read_mask(path, MASK.shape)
    np.testing.assert_array_equal(mask, MASK)
    assert mask.dtype == np.uint8


def test_a_mask_of_another_number_type_is_the_same(tmp_path):
    path = tmp_path / "a.mat"
    write_sbd(path, MASK.astype(np.float64))
    np.testing.assert_array_equal(read_mask(path, MASK.shape), MASK)
    assert read_mask(path, MASK.shape).dtype == np.uint8


def test_palette_and_grey_masks_give_indices(tmp_path):
    palette = Image.fromarray(MASK)
    palette.save(tmp_path / "grey.png")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8))
    palette.save(tmp_path / "palette.png")
    for name, mode in (("grey", "L"), ("palette", "P")):
        path = tmp_path / f"{name}.png"
        with Image.open(path) as image:
            assert image.mode == mode
        np.testing.assert_array_equal(read_mask(path, MASK.shape), MASK)


def test_broken_annotations_of_sbd_are_named(tmp_path):
    path = tmp_path / "a.mat"
    write_sbd(path, MASK)
    whole = path.read_bytes()
    for end in [*range(0, len(whole) - 1, len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="a.mat is not a whole annotation of SBD"):
            read_mask(path, MASK.shape)
    write_sbd(path, MASK, variable="GTinst")
    with pytest.raises(ValueError, match="a.mat is not a whole annotation of SBD: KeyError"):
        read_mask(path, MASK.shape)


def test_masks_of_sbd_must_fit(tmp_path):
    path = tmp_path / "a.mat"
    write_sbd(path, MASK)
    with pytest.raises(ValueError, match=r"a.mat is \(30, 40\), its image is \(40, 30\)"):
        read_mask(path, (40, 30))
    write_sbd(path, MASK + np.uint8(5))
    with pytest.raises(ValueError, match=r"a.mat holds \[25\], which are neither"):
        read_mask(path, MASK.shape)
