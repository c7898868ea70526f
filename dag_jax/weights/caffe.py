"""Reader of `.caffemodel` files, the binary NetParameter messages that Caffe writes, without Caffe.

Both forms are read: `layer`, whose types are text, and `layers` (V1), whose types are numbers;
blobs with a BlobShape and with the older num, channels, height and width; `data` and `double_data`.

A protobuf parser skips what it does not know, and a file has no checksum. So the description below
names, beside the fields where weights lie, those that a damaged byte could make of them, and what
is left over in a message is refused unless it may be the settings of a layer type, in which the
forks of Caffe differ. (A fork's fields elsewhere are refused, too, such as NVIDIA's raw_data with
its half precision.) What cannot be noticed: a changed bit in a value or a name, a file that ends
exactly between two layers, and a changed length or field number after which the bytes happen to
parse as such settings. Compare the file's published checksum, and the converted names and shapes
(`dag_jax.weights.store.check`).

Bounds: while a file is read, at most 3 times its size and 60 MB are in memory, as it has at most
`_MOST_FIELDS` fields; it takes a second, and that of copying its values.

Reference: https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto
"""

import math
import pathlib
import re
from typing import NamedTuple

import numpy as np

from dag_jax.errors import MissingError, StorageError, UserError, optional_import, reading
from dag_jax.weights import kinds

with optional_import("data"):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields
    from google.protobuf.message import Message

_MAX_BYTES = 2**31 - 1  # of a message, for protobuf and for Caffe (util/io.cpp)
_MOST_FIELDS = 100_000  # of all messages, ten times a deep network's
_MAX_AXES = 32  # kMaxBlobAxes in Caffe's blob.hpp
_LEGACY = ("num", "channels", "height", "width")
_NUMBERS = ("data", "diff", "double_data", "double_diff")

# Fields of caffe.proto with their numbers; * marks a repeated one. On the wire, text and packed
# numbers are runs of bytes: declared as such, the first gets our message where it is not UTF-8,
# and NumPy takes the second without a Python object for each. A name is repeated here (and not in
# caffe.proto) so that a second one is seen, where a parser would take the last and say nothing.
_MESSAGES = {
    "Net": """bytes* name 1, V1Layer* layers 2, bytes* input 3, int64* input_dim 4,
        bool force_backward 5, State state 6, bool debug_info 7, Shape* input_shape 8,
        Layer* layer 100""",
    "Layer": """bytes* name 1, bytes* type 2, bytes* bottom 3, bytes* top 4, float* loss_weight 5,
        Param* param 6, Blob* blobs 7, bytes* include 8, bytes* exclude 9, int64 phase 10,
        bool* propagate_down 11, Transform transform_param 100""",
    "V1Layer": """bytes* layer 1, bytes* bottom 2, bytes* top 3, bytes* name 4, int64 type 5,
        Blob* blobs 6, float* blobs_lr 7, float* weight_decay 8, Output hdf5_output_param 14""",
    "Blob": """int64 num 1, int64 channels 2, int64 height 3, int64 width 4, bytes* data 5,
        bytes* diff 6, Shape shape 7, bytes* double_data 8, bytes* double_diff 9""",
    # The same from a writer that gives each number a field of its own.
    "UnpackedBlob": """int64 num 1, int64 channels 2, int64 height 3, int64 width 4, float* data 5,
        float* diff 6, Shape shape 7, double* double_data 8, double* double_diff 9""",
    "Shape": "int64* dim 1",
    "State": "int64 phase 1, int64 level 2, bytes* stage 3",
    "Param": "bytes* name 1, float lr_mult 3, float decay_mult 4, int64 share_mode 2",
    "Transform": "float scale 1, bool mirror 2",
    "Output": "bytes* file_name 1",
    "Settings": "",
}
# From this number on, a field that is not listed is a layer type's settings or a fork's addition.
_OPEN = {"Layer": 101, "V1Layer": 9, "Transform": 3}
# The fields of a message that are messages themselves, whose fields count.
_INNER = {
    message: {
        int(number): kind.rstrip("*")
        for kind, _, number in map(str.split, filter(None, fields.split(",")))
        if kind.rstrip("*") in _MESSAGES
    }
    for message, fields in _MESSAGES.items()
}
# Numbers of a blob, each a field of its own.
_RUNS = {
    number << 3 | kind: re.compile(b"(?:%c[\\s\\S]{%d})++" % (number << 3 | kind, size))
    for number, kind, size in ((5, 5, 4), (6, 5, 4), (8, 1, 8), (9, 1, 8))
}
# The first byte of a message with one of Net's fields first.
_FIRST_BYTES = bytes([0x0A, 0x12, 0x1A, 0x20, 0x22, 0x28, 0x32, 0x38, 0x42, 0xA2])
# V1LayerParameter.LayerType by number, in the words of the newer form (util/upgrade_proto.cpp).
_V1_TYPES = (
    ",Accuracy,BNLL,Concat,Convolution,Data,Dropout,EuclideanLoss,Flatten,HDF5Data,HDF5Output,"
    "Im2col,ImageData,InfogainLoss,InnerProduct,LRN,MultinomialLogisticLoss,Pooling,ReLU,Sigmoid,"
    "Softmax,SoftmaxWithLoss,Split,TanH,WindowData,Eltwise,Power,SigmoidCrossEntropyLoss,HingeLoss,"
    "MemoryData,ArgMax,Threshold,DummyData,Slice,MVN,AbsVal,Silence,ContrastiveLoss,Exp,"
    "Deconvolution"
).split(",")


def _classes():
    """Build protobuf's classes for the messages above, in a pool of their own.

    The default pool may hold the caffe.proto of a Caffe that is installed.
    """
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="dag_jax")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for kind, field_name, number in map(str.split, filter(None, fields.split(","))):
            field = message.field.add(name=field_name, number=int(number))
            repeated = kind.endswith("*")
            field.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _MESSAGES:
                field.type = field_type.TYPE_MESSAGE
                field.type_name = f".dag_jax.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"dag_jax.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()


class Layer(NamedTuple):
    """One layer of a file.

    Attributes:
      name: the name that its prototxt gives it; '' if it gives none.
      type: Caffe's name for what it does, such as 'Convolution'; '' if there is none, and the
        number as text where a V1 type is a fork's own.
      blobs: its float32 arrays in order, in C order and with the shapes that are stored.
    """

    name: str
    type: str
    blobs: list[np.ndarray]


def read(path):
    """Read the weights of a `.caffemodel` file.

    Args:
      path: the file.

    Returns:
      dict of layer name to its list of blobs, in the file's order: float32 arrays in C order with
      the shapes that are stored, so a blob with num, channels, height and width has 4 axes even
      where three are 1. Layers without blobs are left out. `double_data` is rounded to float32.

    Raises:
      UserError: if there is no such file, it is truncated, damaged, of another kind or without
        weights, or two layers with blobs have one name.
    """
    return {layer.name: layer.blobs for layer in layers(path) if layer.blobs}


def layers(path):
    """Read all layers of a `.caffemodel` file, those without blobs too.

    Args:
      path: the file.

    Returns:
      list of `Layer` in the file's order.

    Raises:
      UserError: as `read`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such caffemodel file")
    size = path.stat().st_size
    try:
        return _layers(_parse(path, size))
    except StorageError:
        raise
    except ValueError as error:
        raise UserError(
            f"{path} ({size} bytes) is not a readable caffemodel: {error}. A caffemodel is the "
            f"binary NetParameter with the weights that Caffe writes as a snapshot; fetch the "
            f"file again and compare its size and checksum with the published ones"
        ) from error


def _parse(path, size):
    with reading(path), open(path, "rb") as file:
        head = file.read(16)
    if not head:
        raise UserError("it is empty")
    kind = _kind(path, head)
    if head[0] not in _FIRST_BYTES:  # before a large file of another kind is read
        raise UserError(kind)
    if size > _MAX_BYTES:
        raise UserError(f"protobuf and Caffe end at {_MAX_BYTES} bytes")
    with reading(path):
        contents = path.read_bytes()
    _check_lengths(contents, kind)
    try:
        return _CLASSES["Net"].FromString(contents)
    except MemoryError:
        with reading(path):
            raise
    except Exception as error:  # its type differs between the implementations of protobuf
        raise UserError(f"{kind} ({error})") from error


def _kind(path, head):
    """Say what a file is that does not parse, by its first bytes."""
    if description := kinds.description(path):
        return f"it is {description}"
    if head.startswith(b"PK"):
        return "it is a zip archive"
    text = head.translate(None, b"\t\n\r").decode("latin-1")
    # A caffemodel may begin like text, too: with a newline, then the length of its name.
    if head[0] not in _FIRST_BYTES and text.isascii() and text.isprintable():
        return "it looks like text, such as a prototxt, a web page or a Git LFS pointer"
    return "it is truncated, damaged or of another kind"


def _check_lengths(contents, kind):
    """Follow the lengths of all fields: a download that broke off is named, tiny ones counted."""
    fields, pending = 0, [("Net", 0, len(contents))]
    while pending:
        message, at, end = pending.pop()
        while at < end:
            fields += 1
            if fields > _MOST_FIELDS:
                raise UserError(f"it has more than {_MOST_FIELDS} fields, so it holds no network")
            run = _RUNS.get(contents[at]) if message == "Blob" else None
            if run and (numbers := run.match(contents, at, end)):
                at = numbers.end()
                continue
            head = contents[at : min(at + 20, end)]  # a tag and a number, 10 bytes each at most
            tag, first = _varint(head, 0)
            number, wire_type = tag >> 3, tag & 7
            length, start = _varint(head, first) if wire_type in (0, 2) else (0, first)
            if not number or not start or wire_type not in (0, 1, 2, 5):
                raise UserError(kind)
            size = {0: 0, 1: 8, 2: length, 5: 4}[wire_type]
            if start + size > end - at:
                raise UserError(
                    f"it is truncated or damaged: field {number} at byte {at} takes "
                    f"{start + size} bytes, {start + size - end + at} more than there are"
                )
            if wire_type == 2 and number in _INNER[message]:
                pending.append((_INNER[message][number], at + start, at + start + size))
            at += start + size


def _varint(run, start):
    """Decode the integer that begins at start; returns it and where it ends, 0 if it does not."""
    value = 0
    for shift, byte in enumerate(run[start:]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, start + shift + 1
    return value, 0


def _layers(net):
    _check_fields(net, "the network")
    _texts(net.name, "the network", max_texts=1)
    _texts(net.input, "the network")
    if net.layer and net.layers:
        raise UserError("it holds both 'layer' and 'layers' fields, and Caffe writes only one")
    layers = []
    weighted = set()
    for number, message in enumerate(net.layer or net.layers):
        layers.append(_layer(message, f"layer {number}"))
        if layers[-1].blobs and layers[-1].name in weighted:
            raise UserError(f"two layers with blobs are named {layers[-1].name!r}")
        if layers[-1].blobs:
            weighted.add(layers[-1].name)
    if not weighted:
        raise UserError(f"it has {len(layers)} layers and no blobs in them, so no weights")
    return layers


def _layer(message, where):
    v1 = hasattr(message, "blobs_lr")
    if v1 and message.layer:
        raise UserError(f"{where} is of the V0 form, which upgrade_net_proto_binary upgrades")
    names = _texts(message.name, where, max_texts=1)
    name = "".join(names)  # most have one
    where = f"{where} ({name or 'without a name'})"
    _check_fields(message, where)
    _texts(message.bottom, where)
    tops = _texts(message.top, where)
    if v1:
        kind = _V1_TYPES[message.type] if 0 <= message.type < len(_V1_TYPES) else str(message.type)
        rates = len(message.blobs_lr)
    else:
        kind = "".join(_texts(message.type, where, max_texts=1))
        rates = len(message.param)
        # Caffe has one weight for each top; a loss layer may leave out its only top.
        if len(message.loss_weight) > max(1, len(tops)):
            raise UserError(
                f"{where} has {len(message.loss_weight)} loss weights for {len(tops)} tops"
            )
    if rates > len(message.blobs):
        raise UserError(f"{where} has {rates} learning rates for {len(message.blobs)} blobs")
    blobs = [_blob(blob, f"blob {i} of {where}") for i, blob in enumerate(message.blobs)]
    return Layer(name, kind, blobs)


def _blob(message, where):
    if not message.data and not message.double_data:  # perhaps each number is a field of its own
        message = _unpacked(message, where)
    _check_fields(message, where)
    numbers = {name: _numbers(message, name, where) for name in _NUMBERS}
    if numbers["data"].size and numbers["double_data"].size:
        raise UserError(f"{where} holds both data and double_data, and Caffe writes only one")
    values = numbers["double_data"] if numbers["double_data"].size else numbers["data"]
    for name in ("diff", "double_diff"):
        if numbers[name].size not in (0, values.size):
            raise UserError(f"{where} has {values.size} values and {numbers[name].size} in {name}")

    if any(message.HasField(name) for name in _LEGACY):  # as Caffe, even beside a shape
        shape = tuple(getattr(message, name) for name in _LEGACY)
    else:
        shape = tuple(message.shape.dim[: _MAX_AXES + 1])
    if len(shape) > _MAX_AXES or min(shape, default=1) < 1:
        raise UserError(
            f"{where} has the shape {shape}; a blob has at most {_MAX_AXES} axes, and at least 1 "
            f"element along each"
        )
    if math.prod(shape) != values.size:
        raise UserError(
            f"{where} has the shape {shape}, so {math.prod(shape)} values, and holds {values.size}"
        )
    return _float32(values, where).reshape(shape)


def _unpacked(message, where):
    try:
        return _CLASSES["UnpackedBlob"].FromString(message.SerializeToString())
    except Exception as error:  # see _parse
        raise UserError(f"{where} is damaged ({error})") from error


def _numbers(message, name, where):
    field = getattr(message, name)
    dtype = np.dtype("<f8" if name.startswith("double") else "<f4")
    if message.DESCRIPTOR.name == "UnpackedBlob":
        return np.fromiter(field, dtype, len(field))
    run = b"".join(field)
    if len(run) % dtype.itemsize:
        raise UserError(
            f"{where} has {len(run)} bytes of {name}, which holds {dtype.itemsize} for each value"
        )
    return np.frombuffer(run, dtype)


def _float32(values, where):
    with np.errstate(all="ignore"):
        rounded = values.astype(np.float32)
    if rounded.dtype != values.dtype and (np.isinf(rounded) & np.isfinite(values)).any():
        raise UserError(f"{where} has a value of {np.abs(values).max():g}, float32 ends at 3.4e38")
    return rounded


def _texts(fields, where, max_texts=None):
    """Decode names; those of a layer and its neighbours are short, readable words."""
    if max_texts is not None and len(fields) > max_texts:
        raise UserError(f"{where} has {len(fields)} names or types, there is at most {max_texts}")
    try:
        texts = [field.decode() for field in fields]
    except UnicodeDecodeError as error:
        raise UserError(f"a name in {where} is not UTF-8 ({error})") from error
    for text in texts:
        if not text.isprintable():
            raise UserError(f"a name in {where} has unprintable characters: {text!r:.80}")
    return texts


def _check_fields(message, where):
    """Refuse what the parser did not know, here and inside, except in layers and in blobs."""
    listed = message.DESCRIPTOR.fields_by_number
    first_open = _OPEN.get(message.DESCRIPTOR.name, math.inf)
    for field in unknown_fields.UnknownFieldSet(message):
        number = field.field_number
        if number in listed:
            raise UserError(f"{where} has a field {listed[number].name!r} of another type")
        if number < first_open:
            raise UserError(f"{where} has a field {number}, which caffe.proto does not have there")
        if field.wire_type == 2 and not _is_settings(field.data):
            raise UserError(f"{where} has a field {number} that is neither a message nor a word")
    for field, value in message.ListFields():
        if field.message_type and field.message_type.name not in ("Layer", "V1Layer", "Blob"):
            for inner in [value] if isinstance(value, Message) else value:
                _check_fields(inner, where)


def _is_settings(contents):
    """Whether bytes are a message or a word, as what the forks of Caffe add is."""
    try:
        _CLASSES["Settings"].FromString(contents)
    except Exception:  # see _parse
        return contents.isascii() and contents.decode().isprintable()
    return True
