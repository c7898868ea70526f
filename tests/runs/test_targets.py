"""What is attacked in an image of a detector, and of the examples of a run."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import detection, metrics, models, networks
from dag_jax.datasets import ExampleSet
from dag_jax.runs import buckets, targets
from dag_jax.runs.attacks import Plan, attack_inputs, bucket_for
from dag_jax.runs.subject import subject_of

IMAGE = np.full((8, 8, 3), 128, np.float32)
KEY = jax.random.key(0)
BOXES = np.float32([[0, 0, 3, 3], [4, 0, 7, 3], [0, 4, 3, 7], [4, 4, 7, 7]])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quarters:
    """A detector whose candidates are an image's quarters; their scores are what it was given.

    The brighter a quarter is, the more it has of the first class.
    """

    table: jax.Array  # f32[4, C], or f32[4, C, 2] of a sigmoid head
    valid: jax.Array  # bool[4]

    classes = ("cat", "background", "dog")

    def propose(self, image):
        del image
        return models.Candidates(jnp.asarray(BOXES), jnp.arange(4), self.valid)

    def scores(self, image, handle):
        first = np.zeros((1, *self.table.shape[1:]), np.float32)
        first[0].flat[0] = 1
        light = self.light(image).reshape(4, *[1] * (self.table.ndim - 1))
        return (self.table + light * first)[handle]

    def light(self, image):
        return image.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3, 4)).reshape(4) - 128

    def detect(self, image):
        raise NotImplementedError


class Sigmoid(Quarters):
    """The same with a sigmoid head: no class is background."""

    classes = ("cat", "dog", "cow")


class Seesaw(Sigmoid):
    """What goes out of the first quarter comes into the last."""

    def light(self, image):
        light = super().light(image)
        return light - np.float32([0, 0, 0, 1]) * light[0]


for _kind in (Sigmoid, Seesaw):
    jax.tree_util.register_dataclass(_kind)
ALL = jnp.ones(4, bool)
# Quarters 0 to 3 look like a cat, a dog, a cat and background.
SOFTMAX = Quarters(jnp.float32([[5, 0, 0], [0, 0, 5], [2, 1, 0], [-9, 5, 0]]), ALL)
LOGITS = [[3, -3, 0], [-3, 3, 0], [-1, -9, 0], [-9, -9, 0]]
SIGMOID = Sigmoid(jnp.stack([jnp.float32(LOGITS), jnp.zeros((4, 3))], axis=-1), ALL)


def truths(*pairs):
    """Objects: (row of BOXES, class)."""
    rows, classes = zip(*pairs, strict=True) if pairs else ((), ())
    return metrics.Truths(BOXES[list(rows)], np.array(classes, int), np.zeros(len(rows), bool))


def find(model, *pairs, **options):
    return targets.detector_targets(model, IMAGE, truths(*pairs), key=KEY, **options)


def test_candidates_that_find_an_object_are_targets_and_come_first():
    targets_found, score_fn = find(SOFTMAX, (1, 2), (2, 0))
    assert targets_found.valid.tolist() == [True, True, False, False]
    assert targets_found.labels.tolist() == [2, 0, 0, 0]
    np.testing.assert_array_equal(score_fn(IMAGE)[:2], SOFTMAX.table[1:3])


def test_background_is_given_to_no_object_wherever_it_stands():
    # Of two classes of objects there is one permutation.
    for seed in range(3):
        targets_found, _ = targets.detector_targets(
            SOFTMAX, IMAGE, truths((0, 0), (1, 2)), key=jax.random.key(seed)
        )
        assert targets_found.adversarial[:2].tolist() == [2, 0]


def test_an_object_must_be_seen_and_seen_there():
    assert not find(SOFTMAX, (3, 0))[0].valid.any()  # no confidence
    assert find(SOFTMAX, (3, 2))[0].valid.sum() == 0
    assert find(SOFTMAX, (3, 2), confidence=0.001)[0].valid.tolist() == [True, False, False, False]
    half = metrics.Truths(np.float32([[0, 0, 7, 3]]), np.array([0]), np.zeros(1, bool))
    count = {
        iou: int(targets.detector_targets(SOFTMAX, IMAGE, half, key=KEY, iou=iou)[0].valid.sum())
        for iou in (0.4, 0.6)
    }
    assert count == {0.4: 1, 0.6: 0}


def test_padding_of_candidates_is_no_target():
    model = Quarters(SOFTMAX.table, jnp.array([False, True, True, True]))
    assert find(model, (0, 0), (1, 2))[0].labels.tolist()[:1] == [2]
    assert find(model, (0, 0))[0].valid.sum() == 0


def test_an_image_without_objects_has_no_targets():
    for model, shape in ((SOFTMAX, (4,)), (SIGMOID, (4, 3))):
        targets_found, score_fn = find(model)
        assert targets_found.valid.shape == shape and not targets_found.valid.any()
        result = dag_jax.attack(score_fn, IMAGE, targets_found)
        assert result.status == dag_jax.Status.NO_TARGETS and not result.perturbation.any()


def test_of_a_sigmoid_head_every_candidate_is_a_target_of_each_class_there_is():
    targets_found, score_fn = find(SIGMOID, (0, 0), (3, 2))
    assert targets_found.valid.tolist() == [[True, False, True]] * 4
    assert not targets_found.labels.any()
    np.testing.assert_array_equal(targets_found.adversarial, np.asarray(targets_found.valid, int))
    scores = score_fn(IMAGE)
    assert scores.shape == (4, 3, 2)
    active = dag_jax.active_targets(scores, targets_found)
    # A logit of 0 at a threshold of 0: argmax answers the first of equals, there.
    assert active.tolist() == [[True, False, True]] + [[False, False, True]] * 3


def test_what_starts_inactive_wakes_up():
    model = Seesaw(SIGMOID.table.at[3, 0, 0].set(-1), ALL)
    targets_found, score_fn = find(model, (0, 0))
    first = np.asarray(dag_jax.active_targets(score_fn(IMAGE), targets_found))
    assert first.tolist() == [[True, False, False]] + [[False] * 3] * 3
    method = dag_jax.Method(max_steps=60)
    short = dataclasses.replace(targets_found, valid=jnp.asarray(first))
    results = [
        dag_jax.attack(score_fn, IMAGE, each_targets, method)
        for each_targets in (short, targets_found)
    ]
    assert [result.status for result in results] == [dag_jax.Status.FOOLED] * 2
    reported = [score_fn(result.adversarial)[:, 0, 0].tolist() for result in results]
    assert reported[0][3] > 0 > reported[0][0]  # fooled, they say, and another one sees the cat
    assert max(reported[1]) <= 0


def test_the_score_function_goes_into_an_attack_and_serves_other_parameters():
    targets_found, score_fn = find(SOFTMAX, (0, 0), (2, 0))
    result = dag_jax.attack(score_fn, IMAGE, targets_found, dag_jax.Method(max_steps=60))
    assert result.status == dag_jax.Status.FOOLED and result.num_steps > 1
    scores = np.asarray(score_fn(result.adversarial))
    assert (scores.argmax(-1)[:2] != 0).all()
    other_leaves, _ = jax.tree.flatten(find(Quarters(SOFTMAX.table + 1, ALL), (0, 0))[1])
    assert len(other_leaves) == len(jax.tree.leaves(score_fn))


def test_a_segmenter_is_told_which_targets_are_its_own(toys):
    with pytest.raises(ValueError, match="Streets segments: make_targets"):
        find(toys["segmenter"])


@pytest.mark.parametrize(("model", "label"), [(SOFTMAX, 1), (SOFTMAX, 3), (SIGMOID, -1)])
def test_an_object_of_no_class_of_objects_is_refused(model, label):
    with pytest.raises(ValueError, match=f"class {label}, which is none of the [23] classes of"):
        find(model, (0, label))


def test_a_model_that_is_no_pytree_is_refused():
    methods = dict.fromkeys(("propose", "scores", "detect"), abs)
    with pytest.raises(ValueError, match="register its class"):
        find(types.SimpleNamespace(classes=("cat",), **methods), (0, 0))


class Pair(Quarters):
    """A detector that returns a tuple for candidates."""

    def propose(self, image):
        return jnp.asarray(BOXES), jnp.arange(4)


jax.tree_util.register_dataclass(Pair)


def test_candidates_of_another_kind_are_named():
    with pytest.raises(ValueError, match="Pair.propose returns a tuple; .* models.Candidates"):
        find(Pair(SOFTMAX.table, ALL), (0, 0))


# Examples of a run.


def example(**changes):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:], mask[0] = 2, 255
    objects = {"boxes": BOXES[:2], "label": [0, 2]}
    return {
        "image_id": "a",
        "image": IMAGE.astype(np.uint8),
        "mask": mask,
        "objects": objects,
    } | changes


def subject(model, classes, **options):
    return subject_of(model, ExampleSet([example(**options)], classes))


def group_of(subject):
    (group,) = buckets.group(subject.model, [subject.examples[0]["image"].shape])
    return group


def test_every_pixel_that_is_not_void_is_a_target_of_a_segmenter(toys):
    row = subject(toys["segmenter"], ("cat", "bus", "dog"))
    targets_found, inputs = targets.paper_targets(row, group_of(row), row.examples[0], 0)
    assert inputs == () and isinstance(targets_found.valid, np.ndarray)
    np.testing.assert_array_equal(targets_found.valid, row.examples[0]["mask"][..., 0] != 255)
    assert set(targets_found.labels[targets_found.valid]) == {4, 6}  # dog and cat
    for label in (4, 6):  # one permutation: a class is given another, the same everywhere
        (replacement,) = set(targets_found.adversarial[targets_found.labels == label])
        assert replacement != label and 0 <= replacement < 7
    again, _ = targets.paper_targets(row, group_of(row), row.examples[0], 0)
    np.testing.assert_array_equal(targets_found.adversarial, again.adversarial)
    other_seeds = [
        targets.paper_targets(row, group_of(row), row.examples[0], seed)[0].adversarial
        for seed in range(1, 5)
    ]
    assert any((adversarial != targets_found.adversarial).any() for adversarial in other_seeds)


def test_a_class_that_the_model_lacks_is_no_target(toys):
    row = subject(toys["segmenter"], ("bus", "cat", "dog"))
    targets_found, _ = targets.paper_targets(row, group_of(row), row.examples[0], 0)
    np.testing.assert_array_equal(targets_found.valid, row.examples[0]["mask"][..., 0] == 4)
    assert not targets_found.valid[:, :4].any()


@pytest.mark.parametrize(("model", "rank"), [(SOFTMAX, 1), (SIGMOID, 2)])
def test_a_detector_s_targets_are_those_of_detector_targets(model, rank):
    row = subject(model, model.classes)
    targets_found, (handle,) = targets.paper_targets(row, group_of(row), row.examples[0], 7)
    objects = row.examples[0]["objects"]
    known = metrics.Truths(objects["boxes"], objects["label"], objects["difficult"])
    expected, score_fn = targets.detector_targets(
        model, row.examples[0]["image"], known, key=dag_jax.image_key(7, "a")
    )
    assert targets_found.valid.ndim == rank and targets_found.valid.any()
    jax.tree.map(np.testing.assert_array_equal, targets_found, jax.device_get(expected))
    scores = models.score_fn(model)(jnp.asarray(IMAGE.astype(np.uint8).astype(np.float32)), handle)
    np.testing.assert_array_equal(scores, score_fn(IMAGE.astype(np.uint8).astype(np.float32)))


@pytest.mark.parametrize("model", [SOFTMAX, SIGMOID])
def test_absent_targets_of_a_detector_are_never_background(model):
    row = subject(model, model.classes)
    targets_found, _ = targets.absent_targets(row, group_of(row), row.examples[0], 0)
    first, _ = targets.paper_targets(row, group_of(row), row.examples[0], 0)
    np.testing.assert_array_equal(targets_found.labels, first.labels)
    if model is SIGMOID:  # there or not: there is no other class
        jax.tree.map(np.testing.assert_array_equal, targets_found, first)
    else:  # the image has both classes of objects: a permutation of them
        assert targets_found.adversarial[targets_found.valid].tolist() == [2, 0]


def test_absent_targets_of_a_segmenter_are_of_no_class_there(toys):
    row = subject(toys["segmenter"], ("cat", "bus", "dog"))
    targets_found, _ = targets.absent_targets(row, group_of(row), row.examples[0], 0)
    present = set(targets_found.labels[targets_found.valid])
    assert present == {4, 6} and not present & set(targets_found.adversarial[targets_found.valid])
    assert len(set(targets_found.adversarial[targets_found.valid])) == 2


def test_a_list_of_targets_has_one_of_few_lengths(toys, scenes):
    two_scenes = subject_of(toys["sigmoid"], scenes(2))
    for row in range(2):
        targets_found, (handle,) = targets.paper_targets(
            two_scenes, group_of(two_scenes), two_scenes.examples[row], 0
        )
        assert len(targets_found.valid) == len(handle) == 484  # of all anchors, each is one
    two = subject_of(toys["two_stage"], scenes(2))
    targets_found, (handle,) = targets.paper_targets(two, group_of(two), two.examples[0], 0)
    assert len(targets_found.valid) == len(handle) == 64 and targets_found.valid.any()


@pytest.mark.slow
def test_what_is_active_at_a_stride_is_what_is_predicted(toys, scenes):
    """The engine's scores of coarse cells and the model's own labels never disagree."""
    row = subject_of(toys["segmenter"], scenes(1))
    ((_, image, targets_found, inputs),) = attack_inputs(Plan(row, dag_jax.Method()))
    score_fn = models.score_fn(row.model, *inputs)
    result = dag_jax.attack(score_fn, image, targets_found, dag_jax.Method(max_steps=5))
    labels = np.asarray(row.model.predict(result.adversarial))
    assert 0 < result.active.sum() < targets_found.valid.sum()
    np.testing.assert_array_equal(
        result.active, targets_found.valid & (labels == targets_found.labels)
    )


def test_images_of_many_sizes_need_no_bucket_of_the_model(toys):
    """Each size is compiled then; a model with a bucket shares what is compiled."""
    small = example(image_id="b", image=np.zeros((4, 8, 3), np.uint8), mask=np.zeros((4, 8), int))
    two_sizes = ExampleSet([example(), small], ("cat", "bus", "dog"))
    two_size_row = subject_of(toys["segmenter"], two_sizes)
    assert bucket_for(two_size_row) is None
    inputs = list(attack_inputs(Plan(two_size_row, dag_jax.Method())))
    assert [targets_found.valid.shape for _, _, targets_found, _ in inputs] == [(8, 8), (4, 8)]
    network = networks.load("fcn_alex", miniature=True)
    assert bucket_for(subject_of(network, two_sizes)) is models.bucket_score_fn
    assert bucket_for(subject_of(network, two_sizes[:1])) is None


# The launches' other targets, on miniatures.


@pytest.mark.slow  # it compiles a detector
def test_proposals_are_counted_as_their_settings_ask(scenes):
    row = subject_of(networks.load("fr_zf_07", miniature=True), scenes(1))
    propose = jax.jit(
        lambda model, image, nms: model.propose(image, nms_threshold=nms, max_proposals=60)
    )
    counts = []
    for threshold in (0.3, 0.9):
        options = {"nms_threshold": threshold, "most": 60}
        arguments = row, group_of(row), row.examples[0], 0
        whole, boxes, count = targets.candidate_targets(*arguments, **options)
        targets_found, (attacked,) = targets.paper_targets(*arguments, **options)
        assert (
            len(boxes) == len(attacked) == 60 and targets_found.valid.sum() == whole.valid.sum() > 0
        )
        image = row.examples[0]["image"].astype(np.float32)
        proposals = propose(row.model, image, threshold)
        expected = np.asarray(proposals.boxes)
        as_sets = (np.asarray(sorted(map(tuple, rows))) for rows in (attacked, expected))
        np.testing.assert_allclose(*as_sets, atol=1e-3)
        among = expected[np.asarray(proposals.valid)]
        overlap = np.array(detection.iou(among, among))
        np.fill_diagonal(overlap, 0)
        assert len(among) == count and overlap.max() <= threshold
        counts.append(int(count))
    assert 0 < counts[0] < counts[1] == 60


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_every_pixel_of_a_drawing_is_a_target(padded):
    network = networks.load("fcn_alex", miniature=True)
    blocks = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    image = blocks.repeat(8, 0).repeat(8, 1)
    seen = np.asarray(jax.jit(network.predict)(image.astype(np.float32)))
    drawn = np.zeros((64, 96), np.int32)
    drawn[16:48, 32:64], drawn[:4], drawn[50:52] = 15, 255, seen[50:52]  # some as drawn already
    whole = {"image_id": "blocks", "image": image, "mask": drawn}
    drawn_row = subject_of(network, ExampleSet([whole], network.classes))
    group = buckets.group_of(network, image.shape) if padded else group_of(drawn_row)
    assert group.padded == padded
    targets_found, inputs = targets.drawn_targets(drawn_row, group, drawn_row.examples[0], 0)
    valid = drawn != 255
    assert inputs == () and targets_found.valid.shape == (64, 96)
    np.testing.assert_array_equal(targets_found.valid, valid)
    np.testing.assert_array_equal(targets_found.adversarial[valid], drawn[valid])
    differs = valid & (seen != drawn)
    np.testing.assert_array_equal(targets_found.labels[differs], seen[differs])
    assert (targets_found.labels != targets_found.adversarial)[valid].all() and (
        valid & ~differs
    ).any()
