import numpy as np
import pytest

from dag_jax.datasets import rendering
from dag_jax.datasets.classes import CLASS_NAMES
from dag_jax.metrics.segmentation import VOID


@pytest.fixture(scope="module")
def scenes():
    return [rendering.render(np.random.default_rng([99, number])) for number in range(60)]


def test_a_scene_is_its_seed(scenes):
    again = rendering.render(np.random.default_rng([99, 5]))
    np.testing.assert_array_equal(again[0], scenes[5][0])
    np.testing.assert_array_equal(again[1], scenes[5][1])
    assert not np.array_equal(scenes[4][0], scenes[5][0])


def test_boxes_hold_exactly_their_object(scenes):
    for _, mask, objects in scenes:
        classes = set(np.unique(mask)) - {0, VOID}
        assert classes <= set(objects["label"].tolist())
        covered = np.zeros(mask.shape, bool)
        for x0, y0, x1, y1 in objects["boxes"].astype(int):
            assert 0 <= x0 <= x1 < rendering.CANVAS and 0 <= y0 <= y1 < rendering.CANVAS
            covered[y0 : y1 + 1, x0 : x1 + 1] = True
        assert not ((mask > 0) & (mask != VOID) & ~covered).any()


def test_scenes_vary(scenes):
    labels = np.concatenate([objects["label"] for _, _, objects in scenes])
    assert set(labels) == set(range(1, len(CLASS_NAMES)))
    difficult = np.concatenate([objects["difficult"] for _, _, objects in scenes])
    assert 0 < difficult.sum() < len(difficult) / 3
    counts = {len(objects["label"]) for _, _, objects in scenes}
    assert {1, 2, 3} <= counts
    areas = np.concatenate(
        [
            (o["boxes"][:, 2] - o["boxes"][:, 0]) * (o["boxes"][:, 3] - o["boxes"][:, 1])
            for _, _, o in scenes
        ]
    )
    assert areas.max() > 10 * areas.min()


def test_outlines_are_void_and_background_is_most(scenes):
    for _, mask, objects in scenes:
        assert (mask == VOID).any() or len(objects["label"]) == 0
    assert 0.4 < np.mean([(mask == 0).mean() for _, mask, _ in scenes]) < 0.9


def test_background_has_every_hue_and_texture_but_no_class():
    classes = {tuple(pair) for pair in rendering._CLASS_MATERIALS}
    background = {tuple(pair) for pair in rendering._BACKGROUND_MATERIALS}
    assert len(classes) == len(CLASS_NAMES) - 1
    assert not classes & background
    assert {hue for hue, _ in background} == set(range(rendering.HUES))
    assert {texture for _, texture in background} == set(range(rendering.TEXTURES))
    # Every class is one step, of hue or of texture, from the background.
    for hue, texture in classes:
        assert any((h == hue) != (t == texture) for h, t in background)


def test_hues_are_faint_and_hold_no_grey():
    np.testing.assert_allclose(rendering._HUE_COLOURS.sum(axis=1), 0, atol=1e-12)
    rms = np.sqrt((rendering._HUE_COLOURS**2).mean(axis=1))
    np.testing.assert_allclose(rms, 1)


def test_smooth_noise_is_that_of_its_knots():
    rng = np.random.default_rng(0)
    noise = rendering._smooth_noise(rng, (8, 8), 2)
    knots = np.random.default_rng(0).standard_normal((3, 3))
    np.testing.assert_allclose(noise[::4, ::4], 1.5 * knots[:2, :2])
    np.testing.assert_allclose(noise[2, 2], 1.5 * knots[:2, :2].mean())
