"""Long work shows how far it is."""

import sys

from dag_jax.errors import optional_import


def progress(iterable=None, **options):
    """Return a progress bar on stderr: what, how many, how long left; options are tqdm's."""
    with optional_import("data"):
        from tqdm import tqdm

    return tqdm(iterable, file=sys.stderr, mininterval=1.0, dynamic_ncols=True, **options)
