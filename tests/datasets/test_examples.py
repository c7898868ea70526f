import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dag_jax.datasets import Examples
from dag_jax.datasets.examples import ExampleBuilder, encode
from dag_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (5 + n, 7, 3)).astype(np.uint8) for n in range(3)]
MASKS = [RNG.integers(0, 21, image.shape[:2]).astype(np.uint8) for image in IMAGES]


class Noise(ExampleBuilder):
    """Three images of noise with 0, 1 and 2 objects."""

    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, (image, mask) in enumerate(zip(IMAGES, MASKS, strict=True)):
            objects = {
                "boxes": np.arange(4.0 * number).reshape(-1, 4),
                "label": np.full(number, 3),
                "difficult": np.arange(number) == 1,
            }
            yield number, encode(f"é{2 - number}", image, mask, objects, has_mask=number > 0)


@pytest.fixture
def builder(tmp_path):
    builder = Noise(data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record")
    return builder


@pytest.fixture
def examples(builder):
    return Examples(builder, "train")


def test_arrays_come_back_without_loss_and_in_order(examples):
    assert len(examples) == 3
    for number, example in enumerate(examples):
        assert example["image_id"] == f"é{2 - number}"
        assert example["has_mask"] is (number > 0)
        np.testing.assert_array_equal(example["image"], IMAGES[number])
        np.testing.assert_array_equal(example["mask"], MASKS[number][:, :, None])
        objects = example["objects"]
        assert objects["boxes"].shape == (number, 4) and objects["boxes"].dtype == np.float32
        assert objects["label"].tolist() == [3] * number and objects["label"].dtype == np.int32
        assert objects["difficult"].tolist() == [False, True][:number]
        assert objects["difficult"].dtype == np.bool_


def test_images_may_be_written_into(examples):
    example = examples[0]
    example["image"][:] = 0
    example["mask"][:] = 0
    np.testing.assert_array_equal(examples[0]["image"], IMAGES[0])


def test_indices_count_from_both_ends(examples):
    assert examples[-1]["image_id"] == examples[np.int64(2)]["image_id"] == "é0"
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"example {index} of 3"):
            examples[index]
    with pytest.raises(TypeError):
        examples["é0"]


def test_another_process_can_read_it(examples):
    copy = pickle.loads(pickle.dumps(examples))
    np.testing.assert_array_equal(copy[1]["image"], IMAGES[1])


def test_the_bytes_of_a_file_are_kept():
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "JPEG")
    objects = {"boxes": [], "label": [], "difficult": []}
    encoded = encode("a", buffer.getvalue(), MASKS[0], objects)
    assert encoded["image"] == buffer.getvalue()
    assert Image.open(io.BytesIO(encoded["mask"])).mode == "L"


def test_a_split_may_be_a_part_of_one(builder):
    assert [each["image_id"] for each in Examples(builder, "train[1:]")] == ["é1", "é0"]


@pytest.mark.parametrize("part", ["[5:", "[]", "[a:b]", "[:0]", "[2:1]", "[7:9]", "[:300%]"])
def test_a_part_that_holds_nothing_is_refused(builder, part):
    with pytest.raises(UserError, match=r"is no part of train that holds an example, as train\[:"):
        Examples(builder, f"train{part}")
