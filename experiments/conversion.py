"""Files of Caffe and of torch to checkpoints of ours."""

import hashlib
import pathlib

from dag_jax import networks
from dag_jax.weights import caffe, convert, store, torch


def convert_files(
    name, sources, output, *, layout=None, offsets_folded=True, miniature=False
) -> convert.Converted:
    """Convert files to one checkpoint, and read that again.

    Args:
      name: one of `networks.NAMES`.
      sources: the files, of Caffe or of torch.
      output: the checkpoint, which must not exist yet.
      layout: as in `convert.convert`.
      offsets_folded: as in `convert.convert`.
      miniature: whether they are of the small network.

    Returns:
      What the files gave.

    Raises:
      ValueError: where `output` exists, a source cannot be read, or does not fit the network.
    """
    output, sources = pathlib.Path(output), [pathlib.Path(source) for source in sources]
    if output.exists():
        raise ValueError(f"{output} exists already; name another --output, or remove it")
    if missing := [str(source) for source in sources if not source.is_file()]:
        raise ValueError(f"no such file: {', '.join(missing)}")
    module = networks.build(name, miniature=miniature)
    arrays = [read(source) for source in sources]
    try:
        converted = convert.convert(module, arrays, layout=layout, offsets_folded=offsets_folded)
    except ValueError as error:
        names = ", ".join(map(str, sources))
        raise ValueError(f"{names} as {name}: {error}") from error
    del arrays
    record = {
        "network": name,
        "miniature": miniature,
        "layout": converted.layout,
        "dense": converted.dense,
        "offsets_folded": offsets_folded,
        "partial": converted.partial,
        "sources": [
            {"name": source.name, "bytes": source.stat().st_size, "sha256": sha256(source)}
            for source in sources
        ],
    }
    store.save(output, converted.parameters, record)
    if converted.partial:  # some layers of the network are not in it
        store.load(output)
    else:
        networks.load(name, miniature=miniature, checkpoint=output)
    return converted


def read(path):
    """Read a file of Caffe or of torch, whichever it is."""
    with open(path, "rb") as file:
        head = file.read(2)
    # A zip archive, or a pickle; a caffemodel begins with one of NetParameter's fields.
    return (torch if head == b"PK" or head[:1] == b"\x80" else caffe).read(path)


def sha256(path):
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(name, output, converted):
    """Say in one line what was made."""
    text = f"{output}: {name}, read as {converted.layout}"
    if converted.dense:
        text += f"; not bilinear: {', '.join(converted.dense)}"
    if converted.partial:
        text += "; a classifier's layers, to train from with experiments.train --initial"
    return text
