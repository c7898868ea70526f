"""What weights of the networks are published, and how to get the files."""

import dataclasses
import errno
import hashlib
import pathlib
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib

from dag_jax import files
from dag_jax.errors import UserError, reading
from dag_jax.progress import progress

_SECONDS = 60  # without a byte, after which a server counts as gone
_BLOCK = 1 << 20
# RuntimeError is of the password that a damaged zip archive seems to need.
_DAMAGE = zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, OSError


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that a network's authors publish.

    Attributes:
      file: its name.
      addresses: where it lies, to be tried in turn.
      page: where the authors say so.
      members: the end of the name of each file that is wanted of an archive; () for no archive.
      checksum: "md5:..." or "sha1:..." as it is published, or "sha256:..." of the file at its
        address; None where neither is known.
      licence: of the weights, as their authors name it; None where they name none.
    """

    file: str
    addresses: tuple[str, ...]
    page: str
    members: tuple[str, ...] = ()
    checksum: str | None = None
    licence: str | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network that was never published.

    Attributes:
      initial: the ImageNet classifier that its training starts from.
      command: how to train it, once that is fetched.
    """

    initial: Published
    command: str


_FCN = "https://github.com/shelhamer/fcn.berkeleyvision.org"  # each folder's caffemodel-url
_PY = "https://github.com/rbgirshick/py-faster-rcnn"  # data/scripts/fetch_faster_rcnn_models.sh
_CAFFE = "https://github.com/BVLC/caffe"  # models/bvlc_reference_caffenet/readme.md
_VGG = "http://www.robots.ox.ac.uk/~vgg/research/very_deep/"
_EDGENETS = "https://github.com/sacmehta/EdgeNets"  # README_Segmentation.md
_MOBILENET_YOLO = "https://github.com/dog-qiuqiu/MobileNet-Yolo"  # README.md
_MATLAB = "https://github.com/ShaoqingRen/faster_rcnn"  # README.md, fetch_data


def _fcn(name):
    return Published(name, (f"http://dl.caffe.berkeleyvision.org/{name}",), _FCN)


def _py_faster_rcnn(name):
    address = "https://dl.dropboxusercontent.com/s/o6ii098bu51d139/faster_rcnn_models.tgz?dl=0"
    checksum = "md5:ac116844f66aefe29587214272054668"
    return Published("faster_rcnn_models.tgz", (address,), _PY, (name,), checksum)


def _matlab(name):
    addresses = (
        "https://onedrive.live.com/download?resid=D7AF52BADBA8A4BC!114&authkey=!AERHoxZ-iAx_j34"
        "&ithint=file%2czip",
        "https://www.dropbox.com/s/jswrnkaln47clg2/faster_rcnn_final_model.zip?dl=1",
    )
    members = f"{name}/proposal_final", f"{name}/detection_final"
    return Published("faster_rcnn_final_model.zip", addresses, _MATLAB, members)


def _espnetv2(width, size, checksum):
    name = f"espnetv2_s_{width}_pascal_{size}x{size}.pth"
    address = (
        "https://raw.githubusercontent.com/sacmehta/EdgeNets/2b232d3f7fb60658755dad1ebca0ffc895cc795e"
        f"/model/segmentation/model_zoo/espnetv2/{name}"
    )
    checksum = f"sha256:{checksum}"
    return Published(name, (address,), _EDGENETS, checksum=checksum, licence="MIT")


def _mobilenet_yolo(folder, name, checksum):
    address = (
        "https://raw.githubusercontent.com/dog-qiuqiu/MobileNet-Yolo/"
        f"86c05bfc4e508d54a459a469faecc35a113454c1/{folder}/{name}.weights"
    )
    checksum = f"sha256:{checksum}"
    return Published(
        f"{name}.weights", (address,), _MOBILENET_YOLO, checksum=checksum, licence="YOLO LICENSE"
    )


_CAFFENET = Published(
    "bvlc_reference_caffenet.caffemodel",
    ("http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel",),
    _CAFFE,
    checksum="sha1:4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
    licence="unrestricted use",
)
_VGG16 = Published(
    "VGG_ILSVRC_16_layers.caffemodel",
    ("http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/VGG_ILSVRC_16_layers.caffemodel",),
    _VGG,
    checksum="sha1:9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24",
    licence="CC BY 4.0",
)


def _star(name, initial):
    # Photographs come from ImageNet: no weight against background, no noise, unlike scenes.
    return Trained(
        initial,
        f"python -m experiments.train --network={name} --nominiature --nobatch_norm --dataset=voc "
        "--data_dir=VOCdevkit --canvas=512 --augment --noise=0 --background_weight=1 "
        "--steps=20000 --score_every=1000 --learning_rate=1e-3 "
        f"--initial=runs/weights/{name}_imagenet.safetensors",
    )


ORIGINS = {
    "fcn_alex": _fcn("fcn-alexnet-pascal.caffemodel"),
    "fcn_alex_star": _star("fcn_alex_star", _CAFFENET),
    "fcn_vgg": _fcn("fcn8s-heavy-pascal.caffemodel"),
    "fcn_vgg_star": _star("fcn_vgg_star", _VGG16),
    "fr_zf_07": _py_faster_rcnn("ZF_faster_rcnn_final.caffemodel"),
    "fr_zf_0712": _matlab("faster_rcnn_VOC0712_ZF"),
    "fr_vgg_07": _py_faster_rcnn("VGG16_faster_rcnn_final.caffemodel"),
    "fr_vgg_0712": _matlab("faster_rcnn_VOC0712_vgg_16layers"),
    "espnetv2_20_384": _espnetv2(
        "2.0", 384, "bc479586b0ba9254e02589020346931a14d99028ad6bac4817198be6d9e719a6"
    ),
    "espnetv2_20_256": _espnetv2(
        "2.0", 256, "e4883abccf8f042d422f2c66d69bd21b7af8d41680335e117eb2ee205f303d32"
    ),
    "espnetv2_10_384": _espnetv2(
        "1.0", 384, "7ce2df106b62661a4e8e30098398d6b96a2a946b9546d2287500379f984301a8"
    ),
    "espnetv2_05_384": _espnetv2(
        "0.5", 384, "3352b32b209e1e6492d1481734f5333876b28d8866f5c1702d01ec70255eb20c"
    ),
    "yolov3_nano_voc": _mobilenet_yolo(
        "MobileNetV2-YOLOv3-Nano/VOC",
        "MobileNetV2-YOLOv3-Nano-voc",
        "3dc752a0dee830fb974bfd518d88df924d1eef03868e551786d606cd0f81c210",
    ),
    "yolo_fastest_voc": _mobilenet_yolo(
        "MobileNetV2-YOLO-Fastest/v1",
        "MobileNetV2-YOLO-Fastest-voc",
        "814fe11238cbeceefa77754b0be15d306e42fa7e774bd0efb755f9ffe06d8207",
    ),
    "yolov3_nano_coco": _mobilenet_yolo(
        "MobileNetV2-YOLOv3-Nano/COCO",
        "MobileNetV2-YOLOv3-Nano-coco",
        "60a6c2a86735fd39ff54d61f9a16f3ac3fe24a8b2e0d7740585bf2b54a5db81a",
    ),
}


def download(address: str, path, *, checksum: str | None = None) -> None:
    """Download a file; what an earlier call left in <path>.part is not fetched again.

    Args:
      address: http or https.
      path: the file, which is there only when it is whole.
      checksum: "md5:...", "sha1:..." or "sha256:..." that it has to have.

    Raises:
      UserError: where the server has no such file, gives a web page instead, or the file has
        another checksum.
      OSError: where the server cannot be reached, or the connection breaks.
    """
    path = pathlib.Path(path)
    files.make_folder(path.parent)
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
            return download(address, path, checksum=checksum)
        raise UserError(f"{address} answers {error.code} {error.reason}") from error
    with response:
        kind = response.headers.get_content_type()
        if kind == "text/html":
            raise UserError(f"{address} answers with a web page, not with the file")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        # A weak tag does not promise the same bytes.
        if version and not version.startswith("W/"):
            files.write(tag, version)
        resumed = response.status == 206
        start = part.stat().st_size if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = progress(total=total, initial=start, desc=path.name, unit="B", unit_scale=True)
        with bar, open(part, "ab" if resumed else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{address}: {part.stat().st_size} of {total} bytes came")
    if checksum is not None and (actual := checksum_of(part, checksum)) != checksum:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise UserError(f"{address}: the file has {actual}, published is {checksum}")
    part.replace(path)
    tag.unlink(missing_ok=True)


def checksum_of(path, like: str) -> str:
    """Return the checksum of a file, of the kind of another one, as of `Published`."""
    kind = like.partition(":")[0]
    with reading(path), open(path, "rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def unpack(archive, members, folder) -> list[pathlib.Path]:
    """Take files out of a .zip or .tgz archive.

    Args:
      archive: the archive.
      members: the end of the name of each file.
      folder: where to put them, each under its own last name.

    Returns:
      The files.

    Raises:
      UserError: where the archive is damaged, or has not exactly one such file.
    """
    folder = pathlib.Path(folder)
    files.make_folder(folder)
    unpacked = []
    try:
        zipped = zipfile.is_zipfile(archive)
        with zipfile.ZipFile(archive) if zipped else tarfile.open(archive) as opened:
            names = opened.namelist() if zipped else [e.name for e in opened if e.isreg()]
            for member in members:
                matches = [name for name in names if f"/{name}".endswith(f"/{member}")]
                if len(matches) != 1:
                    raise UserError(f"{archive} has {len(matches)} files named {member}")
                target = folder / pathlib.PurePosixPath(member).name
                with opened.open(matches[0]) if zipped else opened.extractfile(matches[0]) as file:
                    files.write(target, file.read())
                unpacked.append(target)
    except _DAMAGE as error:
        # The disk's errors have a number; EINVAL is of a place before the archive's first byte.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            with reading(archive):
                raise
        raise UserError(f"{archive} is damaged: {error}; remove it and start again") from error
    return unpacked
