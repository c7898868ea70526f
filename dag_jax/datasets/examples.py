"""One example, the same for every dataset: its TFDS features, its encoding, its arrays.

Shapes: H W pixels, N objects.
"""

import io
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dag_jax.datasets.classes import CLASS_NAMES, VOID
from dag_jax.datasets.photographs import decode
from dag_jax.errors import UserError, optional_import

with optional_import("data"):
    import tensorflow_datasets as tfds
    from PIL import Image


class ExampleBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Base of the builders. A dataset adds VERSION, splits and a generator of `encode` dicts."""

    # Else TFDS would look for checksums of downloads beside the code, by importlib_resources, which
    # it does not install. Nothing is downloaded here.
    code_path = None

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image_id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                "mask": tfds.features.Image(shape=(None, None, 1)),
                "has_mask": np.bool_,
                "objects": tfds.features.Sequence(
                    {
                        "boxes": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                        "label": np.int32,
                        "difficult": np.bool_,
                    }
                ),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features,
            disable_shuffling=True,  # keep the order of the generator
        )


def encode(image_id, image, mask, objects, *, has_mask=True):
    """Return what a TFDS generator yields for one example.

    Args:
      image_id: text.
      image: bytes of a JPEG or PNG file, kept as they are, or uint8 [H, W, 3], stored without
        loss.
      mask: uint8 [H, W], class of each pixel, 255 = void.
      objects: dict of boxes float [N, 4] (pixels, 0-based inclusive corners), label int [N] and
        difficult bool [N].
      has_mask: False where nobody segmented the image (the mask is then void throughout).
    """
    return {
        "image_id": image_id,
        "image": image if isinstance(image, bytes) else _png(image),
        # As grey PNG: of a palette PNG some readers return the colours, not the indices.
        "mask": _png(mask),
        "has_mask": has_mask,
        "objects": {
            "boxes": np.asarray(objects["boxes"], np.float32).reshape(-1, 4),
            "label": np.asarray(objects["label"], np.int32),
            "difficult": np.asarray(objects["difficult"], np.bool_),
        },
    }


class Examples(Sequence):
    """A prepared split, by index, in the order of its list.

    Each example is a dict of NumPy values:
      image_id: text.
      image: uint8 [H, W, 3], RGB.
      mask: uint8 [H, W, 1], class of each pixel, 0 = background, 255 = void.
      has_mask: bool; where False, the mask is void throughout.
      objects: dict of
        boxes: float32 [N, 4], [x0, y0, x1, y1] in pixels, 0-based, inclusive corners.
        label: int32 [N], class, 1 and up.
        difficult: bool [N], objects that an evaluation leaves out.

    Attributes:
      classes: names of the classes by index.
      void: the label of pixels that are of no class; None where all have one.
    """

    classes: tuple[str, ...] = CLASS_NAMES
    void: int | None = VOID

    def __init__(self, builder: Any, split: str):
        # Pillow decodes, here as everywhere: TFDS takes OpenCV where that is installed, and the
        # two may differ by a grey level.
        skip = tfds.decode.SkipDecoding()
        name = split.split("[")[0]
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
        except ValueError:  # no slice, or beyond the end
            parts = []
        # TFDS takes a last one before the first for the end.
        if not parts or any(part.to is not None and part.to <= (part.from_ or 0) for part in parts):
            raise UserError(
                f"{split!r} is no part of {name} that holds an example, as {name}[:50] is"
            )
        self._source = builder.as_data_source(split=split, decoders={"image": skip, "mask": skip})

    def __len__(self):
        """Return the number of examples."""
        return len(self._source)

    def __getitem__(self, index):
        """Return one example; negative indices count from the end."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        raw = self._source[index % len(self)]
        objects = raw["objects"]
        return {
            "image_id": raw["image_id"].decode(),
            "image": decode(raw["image"], raw["image_id"].decode()),
            "mask": np.array(Image.open(io.BytesIO(raw["mask"])))[:, :, None],
            "has_mask": bool(raw["has_mask"]),
            "objects": {
                "boxes": np.asarray(objects["boxes"], np.float32).reshape(-1, 4),
                "label": np.asarray(objects["label"], np.int32),
                "difficult": np.asarray(objects["difficult"], np.bool_),
            },
        }


class FileExamples(Sequence):
    """A split by index, of which each example is read from its files when it is asked for.

    Examples are dicts as those of `Examples`. Masks are integers of the dataset's own classes;
    labels of objects start at 0.

    Args:
      ids: name of each example.
      rows: for each example, what `read` takes.
      read: function of a row that returns the example without its id.
      classes: names of the classes by index.
      void: the label of pixels that are of no class; None where all have one.
    """

    def __init__(
        self,
        ids: Sequence[str],
        rows: Sequence,
        read: Callable,
        classes: Sequence[str],
        void: int | None,
    ) -> None:
        self.ids, self._rows, self._read = list(ids), rows, read
        self.classes, self.void = tuple(classes), void

    def __len__(self):
        """Return the number of examples."""
        return len(self._rows)

    def __getitem__(self, index):
        """Return one example; negative indices count from the end. A slice reads nothing yet."""
        if isinstance(index, slice):
            ids, rows = self.ids[index], self._rows[index]
            return FileExamples(ids, rows, self._read, self.classes, self.void)
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return {"image_id": self.ids[index], **self._read(self._rows[index])}


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
