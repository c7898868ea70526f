"""One perturbation for several models, on linear ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax.engine.algorithm import advance
from dag_jax.metrics import Detections
from dag_jax.models import Candidates
from dag_jax.runs import joint, rundir
from dag_jax.runs.attacks import Plan
from dag_jax.runs.unlabelled import aimed_targets, as_seen, changes_of, objects_in

COLOURS = ("red", "green", "blue")
SHAPE = 32, 40


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pixels:
    """A segmenter that sees each pixel's largest channel, weighed."""

    weights: jax.Array

    classes = COLOURS

    def scores(self, image):
        return image * self.weights[None, None]

    def predict(self, image):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halves:
    """A detector whose two boxes are the halves of the image, each of its mean colour."""

    weights: jax.Array

    classes = ("blue", "background", "red", "green")

    def propose(self, image):
        (height, width), half = image.shape[:2], image.shape[1] // 2
        boxes = jnp.float32([[0, 0, half - 1, height - 1], [half, 0, width - 1, height - 1]])
        return Candidates(boxes, jnp.arange(2), jnp.ones(2, bool))

    def scores(self, image, handle):
        half = image.shape[1] // 2
        parts = jnp.stack([image[:, :half].mean((0, 1)), image[:, half:].mean((0, 1))])
        red, green, blue = jnp.moveaxis(parts[handle] * self.weights[None], 1, 0)
        return jnp.stack([blue, jnp.zeros_like(red), red, green], axis=-1) / 10

    def detect(self, image):
        candidates = self.propose(image)
        sure = jax.nn.softmax(self.scores(image, candidates.handle))
        return Detections(candidates.boxes, sure.argmax(1), sure.max(1), candidates.valid)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    image = rng.integers(100, 140, (*SHAPE, 3)).astype(np.uint8)
    image[:, 20:, 0] += 60  # the right half is red
    return image


@pytest.fixture(scope="module")
def plans(image):
    method = dag_jax.Method(step_size=4.0, max_steps=60, rounded=True)
    kinds = {"pixels": Pixels, "halves": Halves}
    models = {name: kind(jnp.float32([1, 1.1, 0.9])) for name, kind in kinds.items()}
    subjects = [as_seen(model, {"a": image}, name=name) for name, model in models.items()]
    return [
        Plan(subject, method.replace(margin=margin))
        for subject, margin in zip(subjects, (0.0, 0.5), strict=True)
    ]


@pytest.fixture(scope="module")
def attacked(plans):
    problem = joint.problem_of(plans)
    attack = jax.device_get(dag_jax.attack(*problem))
    saved = rundir.saved_pixels(problem.image, attack.perturbation)
    return problem, attack, saved, joint.record_of(problem, attack, saved)


def test_what_a_segmenter_sees_stands_for_a_mask(plans, image):
    (example,) = plans[0].subject.examples
    seen = (image * np.float32([1, 1.1, 0.9])).argmax(-1)
    np.testing.assert_array_equal(example["mask"][:, :, 0], seen)
    assert plans[0].subject.examples.classes == COLOURS and example["image_id"] == "a"


def test_what_a_detector_finds_stands_for_objects(plans):
    (example,) = plans[1].subject.examples
    objects = example["objects"]
    np.testing.assert_array_equal(objects["boxes"], [[0, 0, 19, 31], [20, 0, 39, 31]])
    assert [Halves.classes[index] for index in objects["label"]] == ["green", "red"]


def test_objects_are_detections_that_score_enough_and_are_there():
    boxes = np.arange(16).reshape(4, 4)
    scores, valid = np.array([0.9, 0.4, 0.5, 0.9]), np.array([True, True, True, False])
    objects = objects_in(Detections(boxes, np.arange(4), scores, valid))
    assert objects.classes.tolist() == [0, 2] and objects.valid is None
    np.testing.assert_array_equal(objects.boxes, boxes[[0, 2]])


@pytest.mark.slow
def test_each_model_has_its_own_targets_and_margin(attacked):
    problem = attacked[0]
    assert problem.method.margin == {"pixels": 0.0, "halves": 0.5}
    assert problem.targets["pixels"].valid.shape == SHAPE
    assert problem.targets["halves"].valid.sum() == 2
    assert problem.score_fn(np.float32(problem.image)).keys() == {"pixels", "halves"}


def test_one_perturbation_fools_all(attacked):
    problem, attack, saved, record = attacked
    assert attack.status == dag_jax.Status.FOOLED
    assert record["fooled"] and record["fooled_png"] and record["active_png"] == 0
    parts = record["models"]
    assert parts["halves"] == {"targets": 2, "active": 0, "active_png": 0, "fooled_png": True}
    assert parts["pixels"]["targets"] == SHAPE[0] * SHAPE[1]


def test_the_record_says_which_model_a_saved_image_does_not_fool(attacked):
    problem, attack, _, _ = attacked
    record = joint.record_of(problem, attack, problem.image)  # saved without the perturbation
    assert record["fooled"] and not record["fooled_png"]
    assert record["active_png"] == SHAPE[0] * SHAPE[1] + 2
    assert not any(part["fooled_png"] for part in record["models"].values())
    assert not any(part["active"] for part in record["models"].values())


def test_one_model_alone_has_its_own_attack(plans):
    plan = plans[0]
    joined = dag_jax.attack(*joint.problem_of([plan]))
    score_fn = plan.subject.model.scores
    targets = joint.problem_of([plan]).targets["pixels"]
    alone = dag_jax.attack(score_fn, joint.problem_of([plan]).image, targets, plan.method)
    np.testing.assert_array_equal(joined.perturbation, alone.perturbation)
    assert joined.num_steps == alone.num_steps


def test_an_attack_can_be_looked_at_on_its_way(attacked):
    problem, attack, _, _ = attacked
    score_fn, image, targets, method = problem
    state, run = dag_jax.init(method, image, targets), jax.jit(advance)
    steps = []
    while int(state.attack.status) == dag_jax.Status.RUNNING:
        state = run(method, score_fn, state, targets, state.attack.num_steps + 5)
        steps.append(int(state.attack.num_steps))
    assert steps[:-1] == list(range(5, 5 * len(steps), 5)) and steps[-1] == attack.num_steps
    np.testing.assert_array_equal(state.attack.perturbation, attack.perturbation)


def test_targets_can_be_driven_to_one_class(plans):
    aim = plans[0]._replace(targets_of=aimed_to(2))
    targets = joint.problem_of([aim]).targets["pixels"]
    assert (targets.adversarial[targets.valid] == 2).all()
    np.testing.assert_array_equal(targets.valid, targets.valid & (targets.labels != 2))


def aimed_to(adversarial):
    def targets_of(*arguments):
        return aimed_targets(*arguments, adversarial=adversarial)

    return targets_of


def test_void_of_a_drawing_is_left_alone(plans):
    void = plans[0].subject.examples.void
    drawing = np.full(SHAPE, void, np.int32)
    drawing[:, :4] = 2
    targets = joint.problem_of([plans[0]._replace(targets_of=aimed_to(drawing))]).targets["pixels"]
    assert targets.valid[:, :4].any() and not targets.valid[:, 4:].any()


def test_an_object_of_another_class_or_place_is_another_object(plans):
    boxes = np.float32([[0, 0, 9, 9], [20, 20, 29, 29], [0, 0, 9, 9]])
    before = Detections(boxes, np.array([0, 2, 3]), np.array([0.9, 0.8, 0.1]))
    after = Detections(boxes + np.float32(1), np.array([0, 3, 3]), np.array([0.7, 0.9, 0.2]))
    facts = changes_of(plans[1].subject, before, after, None)
    numbers = {name: facts[name] for name in ("objects_before", "objects_kept", "objects_other")}
    assert numbers == {"objects_before": 2, "objects_kept": 1, "objects_other": 1}
    first = {"class": "blue", "score": 0.9, "box": [0.0, 0.0, 9.0, 9.0]}
    assert facts["detections_before"][0] == first and len(facts["detections_after"]) == 3


def test_pixels_that_change_and_pixels_that_are_as_asked_are_shares(plans):
    before = np.zeros((2, 4), np.int32)
    after = np.int32([[1, 1, 2, 0], [0, 0, 0, 0]])
    valid = np.array([[True, True, True, True], [False] * 4])
    targets = dag_jax.Targets(before, np.ones_like(before), valid)
    facts = changes_of(plans[0].subject, before, after, targets)
    assert facts == {"pixels_changed": 3 / 8, "targets_as_asked": 2 / 4}
