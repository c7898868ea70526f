"""The targets that launches attack, on miniatures and a small image of blocks."""

import types

import jax
import numpy as np
import pytest

from dag_jax import detection, files, networks
from dag_jax.metrics.segmentation import VOID
from dag_jax.runs import attacks, buckets, rundir

SIZE = 64, 96


@pytest.fixture(scope="module")
def example():
    blocks = np.random.default_rng(0).integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
    drawn = np.zeros((*SIZE, 1), np.uint8)
    drawn[16:48, 32:64], drawn[:4] = 15, VOID
    objects = {"boxes": np.float32([[0, 0, 95, 63]]), "label": np.int64([15])}
    return {
        "image_id": "blocks",
        "image": blocks.repeat(8, 0).repeat(8, 1),
        "mask": drawn,
        "objects": objects,
    }


@pytest.mark.slow  # it compiles a detector
def test_proposals_are_counted_as_their_settings_ask(example):
    network = networks.load("fr_zf_07", miniature=True)
    image = example["image"].astype(np.float32)
    propose = jax.jit(networks.propose, static_argnames="max_proposals")
    kept = []
    for threshold in (0.3, 0.9):
        setting = {"nms_threshold": threshold, "max_proposals": 60}
        boxes, _, valid = propose(network, image, **setting)
        boxes = np.asarray(boxes)[np.asarray(valid)]
        overlap = np.array(detection.iou(boxes, boxes))
        np.fill_diagonal(overlap, 0)
        assert overlap.max() <= threshold
        counts = attacks.count_proposals(network, [example, example], label=None, **setting)
        assert counts.shape == (2, 2) and (counts[:, 0] == len(boxes)).all()
        (group,) = buckets.group(network, [image.shape])
        targets, (attacked,) = attacks.paper_targets(group, example, 0, **setting)
        assert (counts[:, 1] == targets.valid.sum()).all() and len(attacked) <= 60
        kept.append(len(boxes))
    assert 0 < kept[0] < kept[1] == 60


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_every_pixel_of_a_drawing_is_a_target(example, padded):
    network = networks.load("fcn_alex", miniature=True)
    image = example["image"].astype(np.float32)
    seen = np.asarray(jax.jit(networks.predict)(network, image))
    drawn = example["mask"][:, :, 0].astype(np.int32)
    drawn[50:52] = seen[50:52]  # some is as drawn already
    example = {**example, "mask": drawn[:, :, None]}
    group = buckets.of(network, image.shape)
    if not padded:
        (group,) = buckets.group(network, [image.shape])
    targets, inputs = attacks.drawn_targets(group, example, 0)
    valid = drawn != VOID
    assert inputs == () and targets.valid.shape == SIZE
    np.testing.assert_array_equal(targets.valid, valid)
    np.testing.assert_array_equal(targets.adversarial[valid], drawn[valid])
    differs = valid & (seen != drawn)
    np.testing.assert_array_equal(targets.labels[differs], seen[differs])
    assert (targets.labels != targets.adversarial)[valid].all() and (valid & ~differs).any()


def test_finished_rows_of_other_images_are_refused(example, tmp_path):
    workdir = attacks.claim(tmp_path / "run", {"launch": "a"}, [example])
    results = rundir.Results(workdir / "dag", {"variant": "dag"}, ["blocks"])
    image = example["image"]
    attack = types.SimpleNamespace(image=image, perturbation=np.zeros(image.shape, np.float32))
    results.add(0, attack, {"image_sha256": files.sha256(image)}, 1.0)
    (workdir / "dag" / "row.json").write_text("{}")
    assert attacks.claim(workdir, {"launch": "a"}, [example]) == workdir
    # Another --data_dir, which no manifest records, has photographs of the same names.
    with pytest.raises(ValueError, match="dag was made of another image of the name 'blocks'"):
        attacks.claim(workdir, {"launch": "a"}, [{**example, "image": 255 - image}])
    with pytest.raises(ValueError, match="dag was made of other images than --dataset"):
        attacks.claim(workdir, {"launch": "a"}, [example, {**example, "image_id": "more"}])
