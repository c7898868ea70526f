"""What the tests of runs are of: a few rendered scenes, and the models of `tests.toy_models`."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import Method, files
from dag_jax.datasets import CLASS_NAMES, ExampleSet, rendering
from dag_jax.metrics import Detections
from dag_jax.runs import rundir
from dag_jax.runs.attacks import Plan
from dag_jax.runs.dataset import ROW
from dag_jax.runs.subject import subject_of
from tests import toy_models

TOYS = ("segmenter", "two_stage", "sigmoid")
SCENES = (13, 2, 5, 8)  # of which each of them sees something


@functools.cache
def _scene(number):
    image, mask, objects = rendering.render(np.random.default_rng([8, number]))
    return {"image_id": f"scene_{number}", "image": image, "mask": mask, "objects": objects}


@pytest.fixture(scope="session")
def scenes():
    """Return so many scenes of detection's test split, without a dataset on disk."""

    @functools.cache
    def first(count):
        return ExampleSet([_scene(number) for number in SCENES[:count]], CLASS_NAMES)

    return first


@pytest.fixture(scope="session")
def mesh():
    """One device: as many lanes as a test needs."""
    return jax.make_mesh((1,), ("images",), devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def toys():
    """The three models, by name."""
    return {name: getattr(toy_models, name)() for name in TOYS}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Light:
    """A segmenter of light and dark."""

    threshold: jax.Array

    classes = ("light", "dark")

    def scores(self, image):
        light = image.mean(axis=-1) - self.threshold
        return jnp.stack([light, -light], axis=-1)

    def predict(self, image):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)


class Window(Light):
    """A detector of one light window, all pixels above its threshold."""

    def propose(self, image):
        raise NotImplementedError

    def detect(self, image):
        seen = image.mean(axis=-1) > self.threshold
        rows, columns = seen.any(axis=1), seen.any(axis=0)
        ends = [columns.argmax(), rows.argmax()]
        ends += [len(side) - 1 - side[::-1].argmax() for side in (columns, rows)]
        box = jnp.stack(ends).astype(jnp.float32)[None]
        return Detections(box, jnp.array([0]), jnp.float32([0.9]), rows.any(keepdims=True))


jax.tree_util.register_dataclass(Window)
# A light window in the dark; no two images are alike.
NAMES = ("a", "b", "c")


def _window(number):
    mask = np.ones((12, 16), np.uint8)
    mask[2 + number : 8, 4:10] = 0
    image = np.random.default_rng(number).integers(90, 110, (12, 16, 3))
    image[mask == 0] += 60
    objects = {"boxes": [[4, 2 + number, 9, 7]], "label": [0]}
    example = {"image": image.astype(np.uint8), "mask": mask, "objects": objects}
    return example | {"image_id": NAMES[number]}


@pytest.fixture(scope="session")
def windows():
    """Return the first images of light windows; those named have no mask."""

    def first(count, *, without=()):
        examples = [_window(number) for number in range(count)]
        for example in examples:
            if example["image_id"] in without:
                del example["mask"]
        return ExampleSet(examples, Light.classes)

    return first


# What was found for each: what darkens the window, what lightens some of the dark, a half of that.
CHANGES = {"fcn_vgg": -50, "mine:first": 50, "mine:window": 25}


@pytest.fixture(scope="session")
def looking():
    """{name: (model, SHA-256 of its weights)} of those that were attacked."""
    thresholds = {"fcn_vgg": (Light, 125), "mine:first": (Light, 130), "mine:window": (Window, 125)}
    return {
        name: (kind(jnp.float32(threshold)), f"weights of {name}")
        for name, (kind, threshold) in thresholds.items()
    }


@pytest.fixture(scope="session")
def write_table(looking):
    """Write the folder of a launch of Table 1 by hand, or add images and models to one."""

    def write(workdir, examples, *, changes=CHANGES, split="val", seed=0, weights=None):
        workdir = files.open_folder(workdir)
        settings = {"seed": seed, "rounded": False, "dataset": "windows"}
        rundir.claim(workdir, {"launch": "table1", "settings": settings})
        for name, change in changes.items():
            model, digest = looking[name]
            subject = subject_of(model, examples, name=name, weights_sha256=weights or digest)
            manifest = Plan(subject, Method(), seed=seed).manifest(split=split)
            results = rundir.Results(workdir / rundir.folder_name(name), manifest, subject.ids)
            for row in results.todo():
                image = subject.examples[row]["image"]
                perturbation = np.zeros(image.shape, np.float32)
                rows = slice(2, 5) if change < 0 else slice(9, 12)
                perturbation[rows, 4:10] = change
                record = {"image_sha256": files.sha256(image), "status": "FOOLED"}
                results.add(row, image, perturbation, record, 1.0)
            row = {"row": name, "network": name, "title": name.upper(), "images": subject.ids}
            files.write_json(results.folder / ROW, row)
        return pathlib.Path(workdir)

    return write


@pytest.fixture
def make_table(write_table, tmp_path):
    """Do what `write_table` does in a folder of the test's own."""
    return lambda examples, *, folder="table1", **options: write_table(
        tmp_path / folder, examples, **options
    )
