"""A model and examples, brought together by the names of their classes."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import networks
from dag_jax.datasets import CLASS_NAMES, ExampleSet
from dag_jax.runs.subject import subject_of, weights_digest

CLASSES = ("sky", "TV", "dog", "background")


def example(image_id="a", **changes):
    mask = np.uint8([[0, 1], [2, 3]])
    objects = {"boxes": [[0, 0, 1, 1]] * 3, "label": [1, 2, 0]}
    image = np.zeros((2, 2, 3), np.uint8)
    return {"image_id": image_id, "image": image, "mask": mask, "objects": objects} | changes


def test_labels_become_the_model_s(toys):
    subject = subject_of(toys["segmenter"], ExampleSet([example()], CLASSES))
    assert subject.examples.classes == toys["segmenter"].classes
    assert subject.examples[0]["mask"][..., 0].tolist() == [[1, 5], [4, 2]]
    assert subject.examples[0]["objects"]["label"].tolist() == [5, 4, 1]
    assert subject.shared.of_model == (1, 2, 4, 5) and subject.ids == ["a"]


def test_background_is_no_object_of_a_detector(toys):
    subject = subject_of(toys["two_stage"], ExampleSet([example()], CLASSES))
    index = toys["two_stage"].classes.index
    assert subject.examples[0]["objects"]["label"].tolist() == [index("tvmonitor"), index("dog")]
    assert subject.examples[0]["mask"][1, 1, 0] == 255
    assert subject.facts()["classes_of_dataset_alone"] == ["sky"]


def test_facts_are_what_a_row_says_beside_its_scores(toys):
    examples = ExampleSet([example()], CLASSES, skipped=["b.png is damaged"])
    facts = subject_of(toys["segmenter"], examples, name="mine").facts()
    assert facts == {
        "network": "mine",
        "title": "Streets",
        "task": "segmentation",
        "classes": ["sky", "background", "dog", "TV"],
        "classes_of_model_alone": ["Person", "motorcycle", "cat"],
        "classes_of_dataset_alone": [],
        "skipped": 1,
        "skipped_files": ["b.png is damaged"],
    }


def test_a_segmenter_gets_the_examples_that_somebody_segmented(toys):
    examples = ExampleSet([example(mask=None), example("b")], CLASSES)
    assert subject_of(toys["segmenter"], examples).ids == ["b"]
    assert subject_of(toys["sigmoid"], examples).ids == ["a", "b"]
    with pytest.raises(ValueError, match="Streets segments, and no example has a mask"):
        subject_of(toys["segmenter"], examples[:1])


def test_no_examples_are_refused(toys):
    with pytest.raises(ValueError, match="no example"):
        subject_of(toys["sigmoid"], ExampleSet([], CLASSES))


def test_a_model_is_called_by_its_name_or_title(toys):
    examples = ExampleSet([example()], CLASSES)
    network = networks.load("fcn_alex", miniature=True)
    names = [subject_of(model, examples).name for model in (network, toys["sigmoid"])]
    assert names == ["fcn_alex", "One-Stage"]
    assert subject_of(network, examples, name="other").name == "other"


def test_a_built_in_network_s_examples_stay_what_they_are():
    whole = ExampleSet([example()], CLASS_NAMES)
    assert (
        subject_of(networks.load("fcn_alex", miniature=True), whole[:]).examples.classes is not None
    )
    subject = subject_of(networks.load("fr_zf_07", miniature=True), whole)
    assert subject.examples[0]["objects"]["label"].tolist() == [1, 2]  # but for background


def test_255_is_a_class_of_a_model_that_has_so_many(toys):
    model = toys["segmenter"]
    many = types.SimpleNamespace(
        classes=tuple(f"class {i}" for i in range(300)) + ("dog",), scores=abs, predict=abs
    )
    subject = subject_of(many, ExampleSet([example()], CLASSES), weights_sha256="known")
    assert subject.examples.void == -1
    assert subject.examples[0]["mask"][..., 0].tolist() == [[-1, -1], [300, -1]]
    assert subject_of(model, ExampleSet([example()], CLASSES)).examples.void == 255


@dataclasses.dataclass(frozen=True)
class Weights:
    """A pytree of two arrays."""

    first: object
    second: object


jax.tree_util.register_dataclass(Weights, ["first", "second"], [])
ARRAY = np.arange(6, dtype=np.float32)


def test_the_digest_is_of_values_and_of_where_they_are():
    digest = weights_digest(Weights(ARRAY, ARRAY + 1))
    assert digest == weights_digest(Weights(jnp.asarray(ARRAY), jnp.asarray(ARRAY + 1)))
    changed_models = [
        Weights(ARRAY + 1, ARRAY),
        Weights(ARRAY, ARRAY),
        Weights(ARRAY.reshape(2, 3), ARRAY + 1),
        Weights(ARRAY.astype(np.int32), ARRAY + 1),
        Weights(np.concatenate([ARRAY, ARRAY + 1]), ARRAY[:0]),
        (ARRAY, ARRAY + 1),
    ]
    assert len({digest, *map(weights_digest, changed_models)}) == 1 + len(changed_models)


def test_the_digest_of_half_precision_and_of_numbers_is_of_their_values():
    digests = [
        weights_digest(Weights(jnp.asarray(ARRAY, dtype), number))
        for dtype in (jnp.float32, jnp.bfloat16)
        for number in (1.0, 2.0)
    ]
    assert len(set(digests)) == 4


def test_what_has_no_value_has_no_digest():
    with pytest.raises(ValueError, match="model.second is a .*: register its class"):
        weights_digest(Weights(ARRAY, abs))
    with pytest.raises(ValueError, match="model is a object"):
        weights_digest(object())
