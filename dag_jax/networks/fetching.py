"""Published weights of networks, from their addresses to checkpoints of ours."""

import pathlib

from dag_jax.errors import MissingError, StorageError, UserError
from dag_jax.networks import conversion, zoo
from dag_jax.weights import downloads
from dag_jax.weights.published import ORIGINS


def listing() -> str:
    """Return text that says of each network what it is and where its weights come from."""
    return "\n".join(map(_paragraph, zoo.ENTRIES))


def _paragraph(name):
    entry, origin = zoo.ENTRIES[name], ORIGINS.get(name)
    classes = entry.classes
    shown = classes if len(classes) < 6 else (*classes[:3], "...", classes[-1])
    lines = [
        f"{name}: {entry.title}, {entry.task}; {entry.paper}",
        f"  published score: {entry.score}",
        f"  classes: {len(classes)} ({', '.join(shown)})",
        f"  image: {entry.size}",
    ]
    if not origin:
        return "\n".join([*lines, "  weights: none are published", ""])
    if origin.command:
        lines += [
            "  weights: never published; those of an ImageNet classifier can be fetched, and then",
            f"    {origin.command}",
        ]
    lines += [f"  licence: {origin.licence}", f"  authors: {origin.page}"]
    for file in origin.files:
        size = f"{file.size:,} bytes" if file.size else "size not stated"
        lines.append(f"  file: {file.name}, {size}, {file.checksum or 'no checksum was published'}")
        lines += [f"    {address}" for address in file.addresses]
        for member, checksum in file.members.items():
            lines.append(f"    in it {member}" + f", {checksum}" * bool(checksum))
    return "\n".join([*lines, ""])


def weights_in(folder, name) -> list[pathlib.Path]:
    """Return the files of a folder that hold the weights of a network.

    Args:
      folder: of <network>.safetensors, or of files by the names that they are published by, those
        of an archive by the end of their names there.
      name: one of `zoo.ENTRIES`.

    Raises:
      MissingError: naming the files that are looked for.
    """
    folder = pathlib.Path(folder)
    ours, origin = folder / f"{name}.safetensors", ORIGINS.get(name)
    if ours.is_file() or not origin or origin.command:
        return [ours]
    paths = [folder / source for source in _sources(origin)]
    if not all(path.is_file() for path in paths):
        raise MissingError(
            f"{ours}: no such checkpoint file, nor {' and '.join(map(str, paths))}; `python -m "
            f"experiments.fetch_weights --networks={name} --workdir={folder}` gets it"
        )
    return paths


def _sources(origin):
    """Return what a network is read from: files, or files in archives."""
    return [source for file in origin.files for source in file.members or [file.name]]


def fetch(name, workdir, *, addresses=(), miniature=False) -> pathlib.Path:
    """Download and convert the weights of one network, or of what its training starts from.

    Args:
      name: one of `published.ORIGINS`.
      workdir: folder of the checkpoints, and of downloads/.
      addresses: as of `downloads.get`.
      miniature: whether they are of the small network.

    Returns:
      The checkpoint.

    Raises:
      UserError: with what to do by hand, where the weights cannot be had.
    """
    origin, workdir = ORIGINS[name], pathlib.Path(workdir)
    if origin.command:
        print(f"{name} was never published; what its training starts from can be fetched")
    output = workdir / f"{name}{'_imagenet' * bool(origin.command)}.safetensors"
    if output.exists():
        print(f"{output} is there already, and is kept")
        return output
    folder = workdir / "downloads"
    for release in origin.files:
        try:
            record = downloads.get(release, folder, addresses=addresses)
        except StorageError:
            raise
        except UserError as error:
            raise UserError(f"{error}\n{_by_hand(name, folder, output)}") from error
        print(_line(release, record))
    sources: list[pathlib.Path] = []
    try:
        for release in origin.files:
            file = folder / release.name
            members = release.members
            sources += downloads.unpack(file, members, folder / name) if members else [file]
        print(conversion.describe(output, zoo.convert(name, sources, output, miniature=miniature)))
    except StorageError:
        raise
    except UserError as error:
        removed = [file.name for file in origin.files if downloads.discard(file, folder)]
        again = f"\n{', '.join(removed)} was removed: the same command fetches it again"
        raise UserError(f"{error}{again * bool(removed)}") from error
    if origin.command:
        print(f"train {name} with\n  {origin.command}")
    return output


def _line(release, record):
    vouched = f"as published ({release.checksum})" if release.checksum else "CHECKSUM UNKNOWN"
    if release.checksum == record["file_checksum"]:
        vouched = "as published"
    return (
        f"{release.name}: {record['bytes']} bytes, {record['file_checksum']}, {vouched}, from "
        f"{record['address']}"
    )


def _by_hand(name, folder, output):
    sources = [pathlib.PurePosixPath(source).name for source in _sources(ORIGINS[name])]
    return (
        "If the connection broke, the same command goes on. If the file is gone, get it in another "
        f"way (its authors: {ORIGINS[name].page}), put it into {folder} and start again, or run\n"
        f"  python -m experiments.convert_weights --network={name} --source={','.join(sources)} "
        f"--output={output}"
    )
