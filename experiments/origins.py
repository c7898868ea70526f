"""Where the weights of the networks of Table 1 come from, and how to get them."""

import dataclasses
import hashlib
import http.client
import pathlib
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile

from experiments import conversion, evaluation

_SECONDS = 60  # without a byte, after which a server counts as gone
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that a network's authors publish.

    Attributes:
      file: its name.
      addresses: where it lies, to be tried in turn.
      page: where the authors say so.
      members: the end of the name of each file that is wanted of an archive; () for no archive.
      md5: its published checksum, if there is one.
    """

    file: str
    addresses: tuple[str, ...]
    page: str
    members: tuple[str, ...] = ()
    md5: str | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network that was never published.

    Attributes:
      command: how to train it.
    """

    command: str


_FCN = "https://github.com/shelhamer/fcn.berkeleyvision.org"  # each folder's caffemodel-url
_PY = "https://github.com/rbgirshick/py-faster-rcnn"  # data/scripts/fetch_faster_rcnn_models.sh
_MATLAB = "https://github.com/ShaoqingRen/faster_rcnn"  # README.md, fetch_data


def _fcn(name):
    return Published(name, (f"http://dl.caffe.berkeleyvision.org/{name}",), _FCN)


def _py_faster_rcnn(name):
    address = "https://dl.dropboxusercontent.com/s/o6ii098bu51d139/faster_rcnn_models.tgz?dl=0"
    md5 = "ac116844f66aefe29587214272054668"
    return Published("faster_rcnn_models.tgz", (address,), _PY, (name,), md5)


def _matlab(name):
    addresses = (
        "https://onedrive.live.com/download?resid=D7AF52BADBA8A4BC!114&authkey=!AERHoxZ-iAx_j34"
        "&ithint=file%2czip",
        "https://www.dropbox.com/s/jswrnkaln47clg2/faster_rcnn_final_model.zip?dl=1",
    )
    members = f"{name}/proposal_final", f"{name}/detection_final"
    return Published("faster_rcnn_final_model.zip", addresses, _MATLAB, members)


def _star(name, initial):
    return Trained(
        f"python -m experiments.train --network={name} --nominiature --nobatch_norm --dataset=voc "
        "--data_dir=VOCdevkit --canvas=512 --splits=voc2012_seg_train_aug "
        f"--test_split=voc2012_seg_val --augment --initial={initial}.safetensors"
    )


ORIGINS = {
    "fcn_alex": _fcn("fcn-alexnet-pascal.caffemodel"),
    "fcn_alex_star": _star("fcn_alex_star", "fcn_alex"),
    "fcn_vgg": _fcn("fcn8s-heavy-pascal.caffemodel"),
    "fcn_vgg_star": _star("fcn_vgg_star", "fcn_vgg"),
    "fr_zf_07": _py_faster_rcnn("ZF_faster_rcnn_final.caffemodel"),
    "fr_zf_0712": _matlab("faster_rcnn_VOC0712_ZF"),
    "fr_vgg_07": _py_faster_rcnn("VGG16_faster_rcnn_final.caffemodel"),
    "fr_vgg_0712": _matlab("faster_rcnn_VOC0712_vgg_16layers"),
}


def table() -> str:
    """Return Markdown that says where each network's weights come from."""
    lines = ["| network | weights |", "|---|---|"]
    for name, origin in ORIGINS.items():
        if isinstance(origin, Trained):
            text = f"never published; `{origin.command}`"
        else:
            of = f"{', '.join(f'`{member}`' for member in origin.members)} of " * bool(
                origin.members
            )
            checksum = f", MD5 {origin.md5}" if origin.md5 else ""
            text = f"{of}[{origin.file}]({origin.addresses[0]}){checksum}; from {origin.page}"
        lines.append(f"| {evaluation.TITLES[name]} | {text} |")
    return "\n".join(lines) + "\n"


def download(address: str, path, *, md5: str | None = None) -> None:
    """Download a file; what an earlier call left in <path>.part is not fetched again.

    Args:
      address: http or https.
      path: the file, which is there only when it is whole.
      md5: checksum that it has to have.

    Raises:
      ValueError: where the server has no such file, gives a web page instead, or the file has
        another checksum.
      OSError: where the server cannot be reached, or the connection breaks.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    tag = path.with_name(path.name + ".part.tag")  # which version of the file it is a part of
    request = urllib.request.Request(address, headers={"User-Agent": "dag-jax"})
    if part.exists() and tag.exists():
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", tag.read_text())  # else the whole file comes
    try:
        response = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch
            part.unlink(), tag.unlink()
            return download(address, path, md5=md5)
        raise ValueError(f"{address} answers {error.code} {error.reason}") from error
    with response:
        kind = response.headers.get_content_type()
        if kind == "text/html":
            raise ValueError(f"{address} answers with a web page, not with the file")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        # A weak tag does not promise the same bytes.
        if version and not version.startswith("W/"):
            tag.write_text(version)
        resumed = response.status == 206
        start = part.stat().st_size if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = evaluation.progress(
            total=total, initial=start, desc=path.name, unit="B", unit_scale=True
        )
        with bar, open(part, "ab" if resumed else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{address}: {part.stat().st_size} of {total} bytes came")
    if md5 is not None and (found := checksum(part)) != md5:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise ValueError(f"{address}: the file has the MD5 {found}, published is {md5}")
    part.replace(path)
    tag.unlink(missing_ok=True)


def checksum(path) -> str:
    """Return the MD5 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def unpack(archive, members, folder) -> list[pathlib.Path]:
    """Take files out of a .zip or .tgz archive.

    Args:
      archive: the archive.
      members: the end of the name of each file.
      folder: where to put them, each under its own last name.

    Returns:
      The files.

    Raises:
      ValueError: where the archive is damaged, or has not exactly one such file.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    try:
        zipped = zipfile.is_zipfile(archive)
        with zipfile.ZipFile(archive) if zipped else tarfile.open(archive) as opened:
            names = opened.namelist() if zipped else opened.getnames()
            for member in members:
                found = [name for name in names if f"/{name}".endswith(f"/{member}")]
                if len(found) != 1:
                    raise ValueError(f"{archive} has {len(found)} files named {member}")
                target = folder / pathlib.PurePosixPath(member).name
                content = opened.open(found[0]) if zipped else opened.extractfile(found[0])
                with content, open(target, "wb") as file:
                    shutil.copyfileobj(content, file, _BLOCK)
                files.append(target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive} is damaged: {error}; remove it and start again") from error
    return files


def fetch(name, workdir, *, addresses=(), miniature=False) -> pathlib.Path:
    """Download and convert the weights of one network.

    Args:
      name: one of `networks.NAMES`.
      workdir: folder of the checkpoints, and of downloads/.
      addresses: to use instead of the published ones.
      miniature: as in `conversion.convert_files`.

    Returns:
      The checkpoint.

    Raises:
      ValueError: with what to do by hand, where the weights cannot be had.
    """
    origin, workdir = ORIGINS[name], pathlib.Path(workdir)
    output = workdir / f"{name}.safetensors"
    if isinstance(origin, Trained):
        raise ValueError(
            f"{name} was never published. It can be trained:\n  {origin.command}\nWith a "
            "caffemodel of your own, run python -m experiments.convert_weights."
        )
    if output.exists():
        raise ValueError(f"{output} exists already; remove it to make it anew")
    file = workdir / "downloads" / origin.file
    failures = []
    for address in () if file.exists() else addresses or origin.addresses:
        try:
            download(address, file, md5=origin.md5)
            break
        except (ValueError, OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")
    if not file.exists():
        sources = ",".join(pathlib.PurePosixPath(m).name for m in origin.members or [file.name])
        raise ValueError(
            f"{origin.file} could not be fetched:\n  "
            + "\n  ".join(failures)
            + "\nIf the connection broke, the same command goes on. If the file is gone, get it in "
            f"another way (its authors: {origin.page}), put it at {file} and start again, or run\n"
            f"  python -m experiments.convert_weights --network={name} --source={sources}"
        )
    if origin.md5 and checksum(file) != origin.md5:
        raise ValueError(f"{file} has not the MD5 {origin.md5} that is published; remove it")
    sources = [file]
    if origin.members:
        sources = unpack(file, origin.members, file.parent / name)
    converted = conversion.convert_files(name, sources, output, miniature=miniature)
    print(conversion.describe(name, output, converted))
    return output
