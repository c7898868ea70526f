"""Flags of a launch that does not exist."""

import pytest
from absl import flags

from experiments.common import options


@pytest.fixture
def define():
    """Define shared flags for a launch that does not exist; they go with the test."""

    def remove():
        for name in [name for name in flags.FLAGS if name in options._SHARED]:
            delattr(flags.FLAGS, name)

    remove()  # those of a launch that another test imported
    yield lambda *names, **more: options.define("experiments.made_up", *names, **more)
    remove()
