"""What can be attacked: the two protocols, what a model says of itself, classes by name."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import datasets, models, networks
from dag_jax.metrics import Detections
from tests import toy_models


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coarse:
    """A segmenter of two classes at a stride of 4."""

    weight: jax.Array

    classes = ("dark", "light")

    def scores(self, image):
        cells = image.reshape(image.shape[0] // 4, 4, image.shape[1] // 4, 4, 3)
        light = self.weight * (cells.mean(axis=(1, 3, 4)) - 128)
        return jnp.stack([-light, light], axis=-1)

    def predict(self, image):
        return jnp.argmax(models.score_fn(self)(image), axis=-1).astype(jnp.int32)


COARSE = Coarse(jnp.float32(0.1))
IMAGE = np.random.default_rng(0).uniform(0, 255, (16, 24, 3)).astype(np.float32)


def detector(**attributes):
    """A detector in name alone."""
    methods = dict.fromkeys(("propose", "scores", "detect"), abs)
    return types.SimpleNamespace(**methods | {"classes": ("background", "cat")} | attributes)


def test_a_segmenter_has_its_task_s_defaults():
    about = models.about(COARSE)
    assert about == ("Coarse", models.SEGMENTATION, ("dark", "light"), None, 0.0, 200)
    assert not about.detects and about.objects == (0, 1)


def test_a_detector_has_its_task_s_defaults():
    about = models.about(detector())
    names = ("background", "cat")
    assert about == ("SimpleNamespace", models.DETECTION, names, 0, 3.0, 150)
    assert about.detects and about.objects == (1,)


def test_a_model_says_what_is_not_the_default():
    about = models.about(toy_models.sigmoid())
    assert (about.title, about.margin, about.max_steps) == ("One-Stage", 1.0, 20)
    described = models.about(detector(margin=np.float32(2), max_steps=np.int64(7), title="Mine"))
    assert described[0] == "Mine" and described[4:] == (2.0, 7)
    assert (type(described.margin), type(described.max_steps)) == (
        float,
        int,
    )  # as JSON and jit take them


@pytest.mark.parametrize(
    ("classes", "attributes", "background"),
    [
        (("cat", "Background", "dog"), {}, 1),
        (("cat", "dog", "__background__"), {}, 2),
        (("cat", "dog"), {}, None),
        (("no object", "cat"), {"background": 0}, 0),
        (("cat", "background"), {"background": -1}, None),  # a class of objects, they say
        (("cat", "background"), {"background": None}, None),
        (("cat", "dog"), {"background": np.int64(1)}, 1),
    ],
)
def test_background_is_where_the_model_says(classes, attributes, background):
    about = models.about(detector(classes=classes, **attributes))
    assert about.background == background
    assert about.objects == tuple(i for i in range(len(classes)) if i != background)


@pytest.mark.parametrize("background", [2, -2, "background", 0.5])
def test_a_background_that_is_no_class_is_refused(background):
    with pytest.raises(ValueError, match=f"background is {background!r}.* one of 2 classes"):
        models.about(detector(background=background))


def test_a_segmenter_s_background_is_a_class_as_any():
    assert models.about(toy_models.segmenter()).objects == tuple(range(7))


def test_what_is_neither_is_told_what_it_lacks():
    for model in (3, lambda image: image, types.SimpleNamespace(classes=("a",), predict=None)):
        with pytest.raises(dag_jax.UserError) as error:
            models.about(model)
        assert f"a {type(model).__name__} is no model" in str(error.value)
    message = str(error.value)
    assert "a Segmenter has classes, scores, predict: it lacks scores, predict;" in message
    assert message.endswith("it lacks propose, scores, detect")


def test_a_class_in_place_of_its_instance_is_told_so():
    with pytest.raises(ValueError, match="Coarse is a class: give .* one of its instances"):
        models.about(Coarse)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat", "classes are 'cat'; they are names, a tuple of str"),
        ((1, 2), r"classes are \(1, 2\); they are names"),
        (("cat", b"dog"), "they are names"),
        ((), "classes repeat, or are none"),
        (("cat", "dog", "cat"), "classes repeat, or are none: 'cat, dog, cat'"),
    ],
)
def test_classes_are_names_and_differ(classes, message):
    with pytest.raises(ValueError, match=message):
        models.about(detector(classes=classes))
    assert models.about(detector(classes=["cat", "dog"])).classes == ("cat", "dog")


def share(model_classes, classes, **attributes):
    return models.share_classes(
        models.about(detector(classes=model_classes, **attributes)), classes
    )


def test_classes_are_shared_by_name_in_any_order():
    shared = share(("dog", "background", "cat", "tree"), ("background", "cat", "dog", "cow"))
    assert shared.to_model == (-1, 2, 0, -1) and shared.of_model == (0, 2)
    assert shared.only_model == ("tree",)
    assert shared.only_dataset == ("cow",)  # a detector has no background to share


def test_a_segmenter_s_background_is_shared():
    about = models.about(toy_models.segmenter())
    shared = models.share_classes(about, datasets.CLASS_NAMES)
    assert shared.of_model == (0, 2, 3, 4, 5, 6) and shared.only_model == ("sky",)
    assert shared.to_model[0] == 2 and len(shared.only_dataset) == 21 - 6
    assert [about.classes[shared.to_model[i]] for i in (15, 14, 20)] == [
        "Person",
        "motorcycle",
        "TV",
    ]
    plain = models.share_classes(models.about(COARSE), ("background", "Light"))
    assert plain.to_model == (-1, 1) and plain.only_dataset == ("background",)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Dining Table", "diningtable"),
        ("potted_plant", "pottedplant"),
        ("TV", "tvmonitor"),
        ("television", "tvmonitor"),
        ("Couch", "sofa"),
        ("airplane", "aeroplane"),
        ("motor-cycle", "motorbike"),
    ],
)
def test_a_class_has_several_names(theirs, ours):
    assert share((theirs,), (ours,)).to_model == share((ours,), (theirs,)).to_model == (0,)


def test_a_name_goes_before_its_synonyms():
    for order in (("sofa", "couch"), ("couch", "sofa")):
        shared = share(order, ("sofa", "couch"))
        assert [order[index] for index in shared.to_model] == ["sofa", "couch"]
    both = share(("sofa",), ("couch", "Sofa"))
    assert both.to_model == (0, 0) and both.of_model == (0,)


def test_names_without_letters_are_no_one_name():
    shared = share(("?", "cat"), ("!", "cat"))
    assert shared.to_model == (-1, 1) and shared.only_dataset == ("!",)


def test_classes_that_share_nothing_are_refused_with_both_lists():
    with pytest.raises(ValueError) as error:
        share(("background", "cat"), ("background", "dog"))
    assert "SimpleNamespace shares no class with the dataset" in str(error.value)
    assert "it has background, cat; the dataset has background, dog" in str(error.value)


def test_coarse_scores_come_at_the_image_s_size():
    score_fn = models.score_fn(COARSE)
    scores = jax.jit(lambda function, image: function(image))(score_fn, IMAGE)
    assert COARSE.scores(IMAGE).shape == (4, 6, 2) and scores.shape == (16, 24, 2)
    assert scores.dtype == jnp.float32
    # Cells' centres lie at pixels 1.5, 5.5, ..: half way between two of them is their mean.
    cells = np.asarray(COARSE.scores(IMAGE))
    np.testing.assert_allclose(scores[0, 0], cells[0, 0], rtol=1e-5)
    between = np.asarray(scores)[:2, 3:5].mean(axis=(0, 1))
    np.testing.assert_allclose(between, cells[0, :2].mean(axis=0), rtol=1e-5)


def test_what_is_active_is_what_is_predicted():
    labels = np.asarray(COARSE.predict(IMAGE))
    targets = dag_jax.make_targets(labels, 1 - labels)
    result = dag_jax.attack(models.score_fn(COARSE), IMAGE, targets, dag_jax.Method(max_steps=20))
    assert 0 < result.active.sum() < labels.size
    np.testing.assert_array_equal(result.active, COARSE.predict(result.adversarial) == labels)


def test_a_score_function_is_a_pytree_of_the_model_s_arrays():
    double = jax.tree.map(lambda leaf: 2 * leaf, models.score_fn(COARSE))
    np.testing.assert_allclose(double(IMAGE), 2 * models.score_fn(COARSE)(IMAGE), rtol=1e-5)
    (leaf,) = jax.tree.leaves(models.score_fn(COARSE))
    assert leaf is COARSE.weight


@pytest.mark.slow
def test_a_detector_s_scores_are_of_the_candidates_that_are_given():
    model, handle = toy_models.sigmoid(), jnp.arange(5)
    free, fixed = models.score_fn(model), models.score_fn(model, handle)
    assert free(IMAGE, handle).shape == (5, 20, 2)
    np.testing.assert_array_equal(free(IMAGE, handle), fixed(IMAGE))
    assert models.is_sigmoid(fixed(IMAGE))
    assert not models.is_sigmoid(models.score_fn(toy_models.two_stage())(IMAGE, np.ones((5, 4))))


def test_a_segmenter_has_no_candidates():
    with pytest.raises(ValueError, match="Coarse segments: it has no candidates"):
        models.score_fn(COARSE, np.zeros((3, 4)))


class Odd(Coarse):
    """A segmenter whose scores have the axes of PyTorch."""

    def scores(self, image):
        return super().scores(image).transpose(2, 0, 1)


class OddDetector(toy_models.TwoStage):
    """A detector that scores too few classes."""

    def scores(self, image, handle):
        return super().scores(image, handle)[:, :20]


for _kind in (Odd, OddDetector):
    jax.tree_util.register_dataclass(_kind)


def test_scores_of_another_shape_are_named_with_what_they_must_be():
    with pytest.raises(ValueError, match=r"Odd are float32\[2, 4, 6\]; of 2 .* \[h, w, 2\]"):
        models.score_fn(Odd(jnp.float32(1)))(IMAGE)
    boxes = jnp.zeros((5, 4))
    with pytest.raises(ValueError, match=r"float32\[5, 20\]; of 21 classes .* \[5, 21\], or"):
        models.score_fn(OddDetector(jnp.ones(2)), boxes)(IMAGE)


def test_parameters_are_named_by_where_they_are():
    assert list(models.parameters_of(COARSE)) == [".weight"]
    assert models.parameters_of(COARSE)[".weight"] is COARSE.weight
    miniature = networks.load("fcn_alex", miniature=True)
    assert len(models.parameters_of(miniature)) == len(jax.tree.leaves(miniature))


def test_what_is_no_pytree_of_arrays_is_told_how_to_be_one():
    with pytest.raises(ValueError, match="model is a SimpleNamespace: register its class"):
        models.parameters_of(detector())
    with pytest.raises(ValueError, match=r"model.weight is a builtin_function.* meta_fields"):
        models.parameters_of(Coarse(abs))


class Bucketed(Coarse):
    """A segmenter that sees images of any size padded to multiples of 32."""

    def scores(self, image, extent=None):
        return super().scores(image) if extent is None else super().scores(image) + extent.sum()

    def bucket(self, shape):
        return self, tuple(-(-side // 32) * 32 for side in shape[:2])


jax.tree_util.register_dataclass(Bucketed)


def test_a_bucket_s_score_function_takes_the_extent_of_the_image():
    function, shape = models.bucket_score_fn(models.score_fn(Bucketed(jnp.float32(1))), (16, 24, 3))
    assert shape == (32, 32)
    padded = np.pad(IMAGE, [(0, 16), (0, 8), (0, 0)])
    scores = function(padded, np.float32([16, 24]))
    np.testing.assert_allclose(
        scores, models.score_fn(Coarse(jnp.float32(1)))(padded) + 40, atol=1e-4
    )


def test_candidates_and_detections_are_pytrees():
    for whole in (
        models.Candidates(np.zeros((2, 4)), {"index": np.arange(2)}, np.ones(2, bool)),
        Detections(np.zeros((2, 4)), np.arange(2), np.ones(2), np.ones(2, bool)),
    ):
        first = jax.tree.map(lambda leaf: leaf[:1], whole)
        assert type(first) is type(whole) and first.boxes.shape == (1, 4)
