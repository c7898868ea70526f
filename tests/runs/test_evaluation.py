"""What a model makes of images, and how that scores in the classes that it shares."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import metrics
from dag_jax.datasets import CLASS_NAMES, ExampleSet
from dag_jax.runs import evaluation
from dag_jax.runs.subject import subject_of


def example(height=40, width=60, image_id="a"):
    mask = np.zeros((height, width, 1), np.uint8)
    mask[10:20, 30:60] = 7
    objects = {"boxes": [[30, 10, 59, 19]], "label": [7], "difficult": [False]}
    image = np.repeat(mask, 3, axis=2) * 20
    return {"image_id": image_id, "image": image, "mask": mask, "objects": objects}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
    """A segmenter that reads classes off the grey levels of `example`; it knows its own words."""

    gain: jax.Array

    classes = ("car", "lorry", "Background")

    def scores(self, image):
        light = self.gain * image.mean(axis=-1)
        return jnp.stack([light - 70, jnp.full_like(light, -100), 70 - light], axis=-1)

    def predict(self, image):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)


class Finder(Known):
    """A detector of one box, which has no background."""

    classes = ("lorry", "car")

    def propose(self, image):
        raise NotImplementedError

    def detect(self, image):
        seen = image.mean(axis=-1) > 70
        rows, columns = seen.any(axis=1), seen.any(axis=0)
        ends = [columns.argmax(), rows.argmax()]
        ends += [len(side) - 1 - side[::-1].argmax() for side in (columns, rows)]
        box = jnp.stack(ends).astype(jnp.float32)
        boxes = jnp.stack([box, box])
        classes, scores = jnp.array([1, 0]), jnp.float32([0.9, 0.8])
        return metrics.Detections(boxes, classes, scores, jnp.array([True, False]) & rows.any())


jax.tree_util.register_dataclass(Finder)


def subject(kind, *examples, classes=CLASS_NAMES):
    return subject_of(kind(jnp.float32(1)), ExampleSet(examples or [example()], classes))


def test_a_perfect_and_an_empty_prediction():
    known = subject(Known)
    right = np.where(example()["mask"][..., 0] == 7, 0, 2)
    assert evaluation.score(known, known.examples, [right]) == 100
    assert evaluation.score(known, known.examples, [np.full_like(right, 1)]) == 0
    two = subject(Finder)
    perfect = metrics.Detections(np.float32([[30, 10, 59, 19]]), np.array([1]), np.float32([0.9]))
    assert evaluation.score(two, two.examples, [perfect]) == 100
    nothing = metrics.Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert evaluation.score(two, two.examples, [nothing]) == 0
    assert np.isnan(evaluation.score(two, two.examples, [nothing], classes=[0]))


def test_a_class_that_the_dataset_lacks_takes_pixels_and_has_no_score():
    known = subject(Known)
    right = np.where(example()["mask"][..., 0] == 7, 0, 2)
    half = right.copy()
    half[:15][right[:15] == 0] = 1  # half of the car is a lorry, they say
    background = (right == 2).sum()
    assert evaluation.score(known, known.examples, [half]) == pytest.approx(100 * (0.5 + 1) / 2)
    assert evaluation.score(known, known.examples, [half], classes=[0]) == 50
    assert evaluation.score(known, known.examples, [half], classes=[1]) == 0
    assert evaluation.evidence(known, known.examples[0], half)["confusion"].sum() == right.size
    assert background == right.size - 300


def test_detections_of_a_class_that_the_dataset_lacks_do_not_count():
    two = subject(Finder)
    boxes = np.float32([[30, 10, 59, 19]] * 2)
    both = metrics.Detections(boxes, np.array([0, 1]), np.float32([0.9, 0.8]))
    assert evaluation.score(two, two.examples, [both]) == 100
    evidence = evaluation.evidence(two, two.examples[0], both)
    assert evidence["classes"].tolist() == [1] and evidence["boxes"].shape == (1, 4)


def test_padding_of_detections_is_no_evidence():
    two = subject(Finder)
    padded = metrics.Detections(
        np.zeros((2, 4), np.float32), np.ones(2, int), np.ones(2), np.array([False, False])
    )
    assert evaluation.evidence(two, two.examples[0], padded)["scores"].size == 0


@pytest.mark.parametrize("kind", [Known, Finder])
def test_a_model_runs_on_images_of_any_sizes_and_number(kind):
    sizes = [(40, 60), (40, 60), (32, 60), (40, 60)]
    examples = [example(*size, image_id=str(row)) for row, size in enumerate(sizes)]
    each_kind = subject(kind, *examples)
    images = evaluation.clean_images(each_kind.examples)
    predictions = evaluation.predict(each_kind.model, images)
    assert evaluation.score(each_kind, each_kind.examples, predictions) == 100
    alone = evaluation.predict(
        each_kind.model, images[2:3] if isinstance(images, list) else [images[2]]
    )
    jax.tree.map(np.testing.assert_array_equal, alone[0], predictions[2])
    if kind is Known:
        assert [labels.shape for labels in predictions] == sizes
    else:
        assert [detections.valid for detections in predictions] == [None] * 4
        assert all(len(detections.boxes) == 1 for detections in predictions)


def test_devices_share_the_images():
    images = [example()["image"]] * 5
    expected = evaluation.predict(Known(jnp.float32(1)), images[:1])[0]
    mesh = jax.make_mesh((2,), ("images",))
    predictions = evaluation.predict(Known(jnp.float32(1)), images, mesh=mesh)
    assert len(predictions) == 5 and all((labels == expected).all() for labels in predictions)


def test_sets_of_images_score_as_if_they_were_alone():
    examples = [example(image_id=name) for name in "abc"]
    known = subject(Known, *examples)
    predictions = [np.where(example()["mask"][..., 0] == 7, wrong, 2) for wrong in (0, 1, 2)]
    pairs = zip(known.examples, predictions, strict=True)
    evidence = [evaluation.evidence(known, *pair) for pair in pairs]
    sets = evaluation.score_sets(known, known.examples, evidence, np.array([[1, 0, 0], [0, 2, 1]]))
    alone = evaluation.score(known, known.examples[:1], predictions[:1])
    rows = [1, 1, 2]
    again = evaluation.score(known, known.examples.pick(rows), [predictions[row] for row in rows])
    np.testing.assert_allclose(sets, [alone, again])


@pytest.mark.parametrize("kind", [Known, Finder])
def test_the_mean_of_the_scores_of_classes_is_the_score(kind):
    examples = [example(image_id=name) for name in "abc"]
    each_kind = subject(kind, *examples)
    predictions = evaluation.predict(each_kind.model, evaluation.clean_images(each_kind.examples))
    if kind is Known:  # wrong at some pixels
        predictions[0] = np.where(np.arange(predictions[0].shape[1]) < 9, 0, predictions[0])
    else:  # a box that is nowhere
        predictions[0] = dataclasses.replace(predictions[0], boxes=predictions[0].boxes + 100)
    pairs = zip(each_kind.examples, predictions, strict=True)
    evidence = [evaluation.evidence(each_kind, *pair) for pair in pairs]
    values = evaluation.class_scores(each_kind, each_kind.examples, evidence)
    assert len(values) == len(each_kind.facts()["classes"])
    mean = np.mean([value for value in values if value is not None])
    expected = evaluation.score_evidence(each_kind, each_kind.examples, evidence)
    assert 0 < expected < 100
    np.testing.assert_allclose(mean, expected, atol=0.01)


class Reals(Known):
    """A segmenter that predicts at its stride."""

    def predict(self, image):
        return self.scores(image)[::2, ::2, 0]


class Tuple(Finder):
    """A detector that returns a tuple."""

    def detect(self, image):
        return image.mean(axis=0), image.mean()


for _kind in (Reals, Tuple):
    jax.tree_util.register_dataclass(_kind)


def test_a_prediction_of_another_kind_is_named():
    with pytest.raises(
        ValueError, match=r"Reals.predict returns float32\[20, 30\]; .* i32\[40, 60"
    ):
        evaluation.predict(Reals(jnp.float32(1)), [example()["image"]])
    with pytest.raises(ValueError, match="Tuple.detect returns a tuple; .* metrics.Detections"):
        evaluation.predict(Tuple(jnp.float32(1)), [example()["image"]])
