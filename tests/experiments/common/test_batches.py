import numpy as np

from experiments.common import batches

SIZE = 64


def scene():
    """One image whose only object fills its box, as class 5 and as grey level 200."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:40, 10:50] = 5
    return {
        "image": np.repeat(mask[:, :, None], 3, axis=2) * 40,
        "mask": mask[:, :, None],
        "objects": {"boxes": np.float32([[10, 20, 49, 39]]), "label": np.int32([5])},
    }


def test_stack_pads_boxes():
    empty = {**scene(), "objects": {"boxes": np.zeros((0, 4)), "label": np.zeros(0, int)}}
    images, masks, boxes, classes, valid = batches.stack([scene(), empty])
    assert images.shape == (2, SIZE, SIZE, 3) and masks.shape == (2, SIZE, SIZE)
    assert boxes.shape == (2, 8, 4)
    np.testing.assert_array_equal(valid.sum(axis=1), [1, 0])
    np.testing.assert_array_equal(boxes[0, 0], [10, 20, 49, 39])
    assert classes[0, 0] == 5


def test_crops_move_image_mask_and_box_together(rng):
    images, masks, boxes, _, valid = batches.stack([scene()] * 40)
    before = images.copy()
    cropped, moved, new_boxes, new_valid = batches.draw_crops(rng, images, masks, boxes, valid)
    np.testing.assert_array_equal(images, before)  # the arguments stay as they are
    np.testing.assert_array_equal(cropped[..., 0], moved * 40)
    assert new_valid[:, 0].sum() > 20 and not new_valid[:, 1:].any()
    for mask, box in zip(moved[new_valid[:, 0]], new_boxes[new_valid[:, 0], 0], strict=True):
        rows, columns = np.nonzero(mask)
        seen = [columns.min(), rows.min(), columns.max(), rows.max()]
        # A crop scaled up by at most 1 / 0.6 moves an edge by less than two pixels.
        np.testing.assert_allclose(box, seen, atol=2)
    assert len({tuple(box) for box in new_boxes[:, 0]}) > 30


def test_crops_mirror_half_of_the_images(rng):
    ramp = np.tile(np.arange(SIZE, dtype=np.uint8)[None, :, None], (200, SIZE, 1, 3))
    masks, boxes = np.zeros((200, SIZE, SIZE), np.uint8), np.zeros((200, 8, 4), np.float32)
    images, *_ = batches.draw_crops(rng, ramp, masks, boxes, np.zeros((200, 8), bool))
    mirrored = images[:, 0, 0, 0] > images[:, 0, -1, 0]
    assert 60 < mirrored.sum() < 140
