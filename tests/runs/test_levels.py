"""Perturbations in whole 256ths of a grey level: near, the same PNG, packed without loss."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dag_jax.errors import DamagedError, UserError
from dag_jax.runs import levels, rundir

SHAPE = (7, 5, 3)
CHANGES = hnp.arrays(np.float32, SHAPE, elements=st.floats(-127, 127, width=32))


@given(hnp.arrays(np.uint8, SHAPE), CHANGES)
@settings(deadline=None, max_examples=200)
def test_the_png_is_the_same_and_the_change_is_near(image, change):
    near = levels.nearest(image, change)
    assert np.array_equal(near * 256, np.rint(near * 256))
    np.testing.assert_array_equal(
        rundir.saved_pixels(image, near), rundir.saved_pixels(image, change)
    )
    assert np.abs(near - change).max() <= 1 / 256
    np.testing.assert_array_equal(levels.nearest(image, near), near)


def test_halves_keep_their_side():
    change = np.float32([[[0.499, 0.501, -0.5]]])  # 127.7, 128.3 and -128 parts of 256
    cases = (10, [128, 129, -128], [10, 11, 10]), (11, [127, 128, -128], [11, 12, 10])
    for level, parts, saved in cases:
        image = np.full((1, 1, 3), level, np.uint8)
        near = levels.nearest(image, change)
        np.testing.assert_array_equal(near * 256, [[parts]])
        np.testing.assert_array_equal(rundir.saved_pixels(image, near), [[saved]])


@given(CHANGES.map(lambda change: np.rint(change * 256) / np.float32(256)))
@settings(deadline=None)
def test_what_is_packed_comes_back(change):
    packed = levels.pack(change)
    assert "perturbation" not in packed
    unpacked = levels.unpack(packed | {"missed": np.uint8([1])})
    assert unpacked.keys() == {"perturbation", "missed"}
    np.testing.assert_array_equal(unpacked["perturbation"], change, strict=True)


@pytest.mark.parametrize("value", [200.0, 1 / 512])
def test_what_does_not_fit_is_kept_as_it_is(value):
    change = np.full(SHAPE, value, np.float32)
    assert levels.pack(change)["perturbation"] is change


def broken(**changed):
    arrays = levels.pack(np.zeros(SHAPE, np.float32))
    return arrays | {f"perturbation_{name}": value for name, value in changed.items()}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (broken(shape=np.int32([7, 5])), "packed in another way"),
        (broken(shape=np.int32([7, 5, 4])), "packed in another way"),
        (broken(shape=np.int32([7, 6, 3])), "other than 252 bytes"),
        (broken(shape=np.int32([-7, 6, 3])), "other than 0 bytes"),
        (broken(**{"256ths": np.uint8([1, 2, 3])}), "cannot be unpacked"),
        (
            broken(**{"256ths": np.frombuffer(zlib.compress(bytes(10**7)), np.uint8)}),
            "other than 210 bytes",
        ),
    ],
)
def test_what_pack_does_not_make_is_refused(arrays, text):
    with pytest.raises(ValueError, match=text):
        levels.unpack(arrays)


def test_a_folder_keeps_them_so(tmp_path, rng):
    image = rng.integers(0, 256, (30, 40, 3), np.uint8)
    change = np.float32(rng.normal(0, 3, image.shape))
    sizes = {}
    for store in levels.STORES:
        folder = tmp_path / store
        results = rundir.Results(folder, {"store": store}, ["a"])
        results.add(0, image, change, {"steps": 3}, 0.1)
        run = rundir.read(folder)
        expected = change if store == levels.FLOAT32 else levels.nearest(image, change)
        np.testing.assert_array_equal(run.perturbation("a"), expected, strict=True)
        np.testing.assert_array_equal(run.image("a"), rundir.saved_pixels(image, change))
        np.testing.assert_array_equal(run.clean("a"), image)
        assert rundir.Results(folder, {"store": store}, ["a"]).todo() == []
        (path,) = (folder / "perturbations").iterdir()
        sizes[store] = path.stat().st_size
    assert sizes[levels.LEVEL256] < 0.5 * sizes[levels.FLOAT32]
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        rundir.read(folder).perturbation("a")
    with pytest.raises(UserError, match="store is 'int4'; it is one of float32, level256"):
        rundir.Results(tmp_path / "other", {"store": "int4"}, ["a"])
