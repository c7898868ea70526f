"""Long work shows how far it is."""

import sys

from tqdm import tqdm


def progress(iterable=None, **options):
    """Return a progress bar on stderr: what, how many, how long left; options are tqdm's."""
    return tqdm(iterable, file=sys.stderr, mininterval=1.0, dynamic_ncols=True, **options)
