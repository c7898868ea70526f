import struct

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

from dag_jax.datasets import annotations
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
    with pytest.raises(ValueError, match="a.mat is not a whole annotation of SBD: it has no GTcls"):
        read_mask(path, MASK.shape)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_bit_of_sbd_is_a_mask_or_an_error(tmp_path, compressed):
    path = tmp_path / "a.mat"
    mask = np.zeros((3, 3), np.uint8)
    scipy.io.savemat(path, {"GTcls": {"Segmentation": mask}}, do_compression=compressed)
    whole = path.read_bytes()
    refused = 0
    for bit in range(8 * 120, 8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert read_mask(path, mask.shape).shape == mask.shape
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 200


def test_a_struct_of_sbd_may_be_of_either_byte_order(tmp_path):
    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(kind, shape, name, *elements):
        flags, shape = struct.pack(">II", kind, 0), struct.pack(">ii", *shape)
        parts = element(6, flags), element(5, shape), element(1, name), *elements
        return element(14, b"".join(parts))

    drawn = element(3, np.array([[0, 7, 20]], ">i2").tobytes())  # uint8 may be kept as int16
    fields = struct.pack(">HHi", 4, 5, 13), element(1, b"Segmentation\0")
    content = matrix(2, (1, 1), b"GTcls", *fields, matrix(9, (1, 3), b"", drawn))
    path = tmp_path / "a.mat"
    path.write_bytes(bytes(124) + b"\1\0MI" + matrix(9, (1, 3), b"other", drawn) + content)
    assert read_mask(path, (1, 3)).tolist() == [[0, 7, 20]]


def test_what_sbd_s_files_inflate_to_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.mat"
    write_sbd(path, MASK)
    monkeypatch.setattr(annotations, "LARGEST", 1000)
    with pytest.raises(ValueError, match="a.mat is not .*cut short, or holds more than 1,000 byte"):
        read_mask(path, MASK.shape)


def test_masks_of_sbd_must_fit(tmp_path):
    path = tmp_path / "a.mat"
    write_sbd(path, MASK)
    with pytest.raises(ValueError, match=r"a.mat is \(30, 40\), its image is \(40, 30\)"):
        read_mask(path, (40, 30))
    write_sbd(path, MASK + np.uint8(5))
    with pytest.raises(ValueError, match=r"a.mat holds \[25\], which are neither"):
        read_mask(path, MASK.shape)
