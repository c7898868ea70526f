"""Attacks in rounds, on a detector whose second query takes over what its first has lost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import Status, models
from dag_jax.adapters import from_queries, from_sigmoid_queries
from dag_jax.metrics import Truths
from dag_jax.runs.rounds import attack_rounds
from dag_jax.runs.targets import detector_targets
from tests import toy_models

IMAGE = np.full((8, 12, 3), 100, np.float32)
BOXES = np.float32([[1, 1, 6, 5], [1, 1, 6, 6], [8, 0, 11, 3]])
TRUTHS = Truths(np.float32([[1, 1, 6, 5]]), np.int32([1]), np.zeros(1, bool))
KEY = dag_jax.image_key(0, "a")


def queries(suppression, image):
    """Return three queries' boxes and logits of two classes and no object.

    The first sees class 1 by the brightness of the image's left, the second by that of its right,
    and is held down as long as the first sees it.
    """
    first_half, second_half = (
        image[:, part].mean() / 10 - 8 for part in (slice(6), slice(6, None))
    )
    second = second_half - suppression * jnp.maximum(first_half, 0)
    zero, never = jnp.float32(0), jnp.float32(-9)
    rows = [[never, first_half, zero], [never, second, zero], [never, never, zero]]
    return jnp.asarray(BOXES), jnp.stack([jnp.stack(row) for row in rows])


@pytest.fixture(scope="module")
def detector():
    return from_queries(jax.tree_util.Partial(queries, jnp.float32(10)), classes=("cat", "dog"))


@pytest.fixture(scope="module")
def finished(detector):
    method = dag_jax.Method(max_steps=80)
    return attack_rounds(detector, IMAGE, TRUTHS, method, key=KEY)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blind:
    """A detector whose scores are of no object, whatever it detects."""

    detector: models.Detector

    @property
    def classes(self):
        return self.detector.classes

    def propose(self, image):
        return self.detector.propose(image)

    def scores(self, image, handle):
        scores = self.detector.scores(image, handle)
        return scores - 20 * jnp.float32([[1, 1, 0]])

    def detect(self, image):
        return self.detector.detect(image)


def sees(detector, image):
    """Return the queries that see an object with a score of one half or more."""
    detections = detector.detect(image)
    return [i for i, score in enumerate(detections.scores) if score >= 0.5]


@pytest.mark.slow
def test_one_round_leaves_the_object_to_the_query_that_takes_it_over(detector):
    assert sees(detector, IMAGE) == [0]
    targets, score_fn = detector_targets(detector, IMAGE, TRUTHS, key=KEY)
    once = dag_jax.attack(score_fn, IMAGE, targets, dag_jax.Method(max_steps=80))
    assert int(once.status) == Status.FOOLED and sees(detector, once.adversarial) == [1]
    single = attack_rounds(detector, IMAGE, TRUTHS, dag_jax.Method(max_steps=80), key=KEY, rounds=1)
    np.testing.assert_allclose(single.attack.perturbation, once.perturbation, atol=1e-5)
    assert len(single.rounds) == 1 and not single.settled


def test_rounds_go_on_until_no_query_sees_it(detector, finished):
    assert finished.settled and sees(detector, finished.attack.adversarial) == []
    np.testing.assert_array_equal(finished.standing, [False])
    assert [each.new for each in finished.rounds] == [1] * len(finished.rounds)
    assert [each.targets for each in finished.rounds] == [1, 2]
    assert all(each.active >= 1 and each.active_at_end == 0 for each in finished.rounds)
    assert {each.status for each in finished.rounds} == {Status.FOOLED}


@pytest.mark.slow
def test_the_attack_goes_on_from_what_it_had(detector, finished):
    # The same by hand: the second round's targets are both queries, from the first's perturbation.
    method = dag_jax.Method(max_steps=80)
    targets, score_fn = detector_targets(detector, IMAGE, TRUTHS, key=KEY)
    first = dag_jax.attack(score_fn, IMAGE, targets, method)
    labels = np.asarray(targets.labels)[[0, 0]], np.asarray(targets.adversarial)[[0, 0]]
    both = models.score_fn(detector, jnp.arange(2))
    again = dag_jax.attack(
        both, IMAGE, dag_jax.make_targets(*labels), method, start=first.perturbation
    )
    np.testing.assert_allclose(finished.attack.perturbation, again.perturbation, atol=1e-4)
    assert finished.rounds[1].num_steps == int(again.num_steps)


def test_an_image_without_targets_has_one_round_that_says_so(detector):
    dark = attack_rounds(detector, IMAGE * np.float32(0.1), TRUTHS, key=KEY)
    assert [each.status for each in dark.rounds] == [Status.NO_TARGETS] and dark.settled


def test_what_is_detected_without_a_target_is_not_settled(detector):
    # Scores that see no object, of a detector that finds it all the same.
    blind = Blind(detector)
    rounds = attack_rounds(blind, IMAGE, TRUTHS, key=KEY)
    assert [each.status for each in rounds.rounds] == [Status.NO_TARGETS]
    np.testing.assert_array_equal(rounds.standing, [True])
    assert not rounds.settled


def test_a_round_that_is_not_finished_is_not_settled(detector):
    short = attack_rounds(detector, IMAGE, TRUTHS, dag_jax.Method(max_steps=2), key=KEY)
    assert not short.settled and short.rounds[0].status == Status.MAX_STEPS
    np.testing.assert_array_equal(short.standing, [True])
    assert len(short.rounds) == 1  # the first query still has it: there is nothing new


def test_fixed_anchors_have_nothing_new(scenes):
    example = scenes(1)[0]
    objects = example["objects"]
    truths = Truths(objects["boxes"], objects["label"] + 2, np.zeros(len(objects["label"]), bool))
    model = toy_models.sigmoid()
    result = attack_rounds(
        model, example["image"], truths, dag_jax.Method(max_steps=3), key=KEY, rounds=3
    )
    assert len(result.rounds) == 1 and result.targets.valid.ndim == 2


def test_a_detector_of_no_candidates_is_refused():
    nothing = lambda image: (jnp.zeros((0, 4)), jnp.zeros((0, 2)))  # noqa: E731
    model = from_sigmoid_queries(nothing, classes=("cat", "dog"))
    with pytest.raises(dag_jax.UserError, match="Queries proposes arrays of no candidate"):
        attack_rounds(model, IMAGE, TRUTHS, key=KEY)


def test_numbers_of_rounds_are_checked(detector):
    with pytest.raises(dag_jax.UserError, match="rounds is 0; it must be 1 or more"):
        attack_rounds(detector, IMAGE, TRUTHS, key=KEY, rounds=0)
