"""Flags of a launch that does not exist."""

import pytest

from experiments.common import options
from tests.experiments.conftest import forget_flags


@pytest.fixture
def define():
    """Define shared flags for a launch that does not exist; they go with the test."""
    forget_flags()  # those of a launch that another test imported
    yield lambda *names, **more: options.define("experiments.made_up", *names, **more)
    forget_flags()
