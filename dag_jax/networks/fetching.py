"""Published weights of networks, from their addresses to checkpoints of ours."""

import http.client
import pathlib

from dag_jax.errors import MissingError, UserError
from dag_jax.networks import conversion, zoo
from dag_jax.weights import published
from dag_jax.weights.published import ORIGINS, Published, Trained


def table() -> str:
    """Return Markdown that says of each network what is published, and where."""
    lines = ["| network | published score | classes | weights |", "|---|---|---|---|"]
    for name, origin in ORIGINS.items():
        trained = isinstance(origin, Trained)
        file = origin.initial if trained else origin
        text = " and ".join(f"`{member}`" for member in file.members) + " of " * bool(file.members)
        text += f"[{file.file}]({file.addresses[0]})"
        text += f", {file.checksum.replace(':', ' ', 1)}" if file.checksum else ""
        text += f", {file.licence}" if file.licence else ""
        text += f"; from {file.page}"
        if trained:
            text = f"never published; ImageNet's {text}, and then `{origin.command}`"
        entry = zoo.ENTRIES[name]
        classes = f"{len(entry.classes)}: {entry.classes[0]} to {entry.classes[-1]}"
        title = f"{entry.title} (`{name}`; {entry.paper})"
        lines.append(f"| {title} | {entry.score} | {classes} | {text} |")
    return "\n".join(lines) + "\n"


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
    if ours.is_file() or not isinstance(origin, Published):
        return [ours]
    paths = [folder / member for member in origin.members or (origin.file,)]
    if not all(path.is_file() for path in paths):
        raise MissingError(
            f"{ours}: no such checkpoint file, nor {' and '.join(map(str, paths))}; `python -m "
            f"experiments.fetch_weights --networks={name} --workdir={folder}` gets it"
        )
    return paths


def fetch(name, workdir, *, addresses=(), miniature=False) -> pathlib.Path:
    """Download and convert the weights of one network, or of what its training starts from.

    Args:
      name: one of `published.ORIGINS`.
      workdir: folder of the checkpoints, and of downloads/.
      addresses: to use instead of the published ones.
      miniature: whether they are of the small network.

    Returns:
      The checkpoint.

    Raises:
      UserError: with what to do by hand, where the weights cannot be had.
    """
    origin, workdir = ORIGINS[name], pathlib.Path(workdir)
    trained = isinstance(origin, Trained)
    if trained:
        print(f"{name} was never published; what its training starts from can be fetched")
    release = origin.initial if trained else origin
    output = workdir / f"{name}{'_imagenet' * trained}.safetensors"
    if output.exists():
        print(f"{output} is there already, and is kept")
        return output
    file = workdir / "downloads" / release.file
    failures = []
    for address in () if file.exists() else addresses or release.addresses:
        try:
            published.download(address, file, checksum=release.checksum)
            break
        except (UserError, OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")
    members, known = release.members, release.checksum
    if not file.exists():
        names = ",".join(pathlib.PurePosixPath(m).name for m in members or [file.name])
        raise UserError(
            f"{file.name} could not be fetched:\n  "
            + "\n  ".join(failures)
            + "\nIf the connection broke, the same command goes on. If the file is gone, get it in "
            f"another way (its authors: {release.page}), put it at {file} and start again, or "
            f"run\n  python -m experiments.convert_weights --network={name} --source={names} "
            f"--output={output}"
        )
    if known and (actual := published.checksum_of(file, known)) != known:
        raise UserError(f"{file} has {actual}, published is {known}; remove it")
    sources = published.unpack(file, members, file.parent / name) if members else [file]
    print(conversion.describe(output, zoo.convert(name, sources, output, miniature=miniature)))
    if trained:
        print(f"train {name} with\n  {origin.command}")
    return output
