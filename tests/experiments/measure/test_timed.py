"""Which images are looked at before the clock starts."""

import types

import numpy as np

from experiments.measure import timed


def test_an_fcn_is_compiled_by_the_first_image_of_each_size():
    sizes = [(4, 6), (4, 6), (6, 4), (6, 4), (4, 6)]
    examples = [{"image": np.zeros((*size, 3), np.uint8)} for size in sizes]
    fcn, detector = (types.SimpleNamespace(detects=detects) for detects in (False, True))
    assert timed.rows_of_shapes(fcn, examples, [1, 2, 3, 4]) == [1, 2]
    assert timed.rows_of_shapes(detector, examples, [1, 2, 3]) == [1, 2, 3]
