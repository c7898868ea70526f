"""The pickles inside PyTorch's checkpoints, read without running anything.

A pickle is a program for a stack machine. It is run here by the unpickler that Python's library has
in Python, whose table of operations is cut to those that tensors and plain containers need. (The
library's unpickler in C is not safe: nine bytes can make it take 8 GB, by a large index into the
memo, and three hundred bytes centuries, by a key of tuples within tuples to be hashed.) What a
program imports is looked up in a closed table of inert stand-ins; a state that it sets is dropped.

Bounds: a program ends after `LARGEST` bytes, or after `MOST_READS` reads, of which each makes at
most about 130 bytes of objects. So no pickle takes more than 110 MB and 4 s.

Reference: https://github.com/python/cpython/blob/main/Lib/pickle.py, and torch/_utils.py and
torch/serialization.py of https://github.com/pytorch/pytorch
"""

import dataclasses
import io
import pickle

import jax.numpy as jnp
import numpy as np

from dag_jax.errors import UserError

LARGEST = 2 << 20  # bytes of pickle: 10,000 tensors, as each takes about 200
MOST_READS = 800_000  # operations and what they are given, of which a tensor takes about 70
_MOST_DIMENSIONS = 64  # as NumPy and PyTorch have it


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A run of values in the file; start and length count values of `kind`."""

    key: str
    kind: np.dtype
    start: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, within its bounds; offset and strides count values of `kind`."""

    key: str
    kind: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """A dict of text and numbers; a tuple of tuples of tuples may take for ever to hash."""

    __slots__ = ()

    def __setitem__(self, key, value):
        if type(key) not in (str, int, float, bool) or (
            type(key) is int and key.bit_length() > 64  # many such numbers can have one hash
        ):
            raise UserError(f"a key of a dict is a {type(key).__name__}, not text or a number")
        super().__setitem__(key, value)


class _Program(io.BytesIO):
    """The bytes of pickles, which end after so many pieces."""

    reads_left = MOST_READS

    def read(self, size=-1):
        self.reads_left -= 1
        if self.reads_left < 0:
            raise UserError(f"its pickle goes on after {MOST_READS} pieces")
        return super().read(size)


class _Operations(dict):
    def __missing__(self, code):
        raise UserError(f"its pickle has {bytes([code])!r}, no operation that tensors need")


_NEEDED = """
    PROTO STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE MARK APPEND APPENDS SETITEM SETITEMS
    BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BINPERSID
"""


class Unpickler(pickle._Unpickler):
    """Reads one pickle after another.

    Attributes:
      storages: {key: (kind, length)} of every storage that the pickles so far refer to.
    """

    dispatch = _Operations(
        (getattr(pickle, name)[0], pickle._Unpickler.dispatch[getattr(pickle, name)[0]])
        for name in _NEEDED.split()
    )
    dispatch[pickle.EMPTY_DICT[0]] = lambda self: self.append(_Dict())
    dispatch[pickle.EMPTY_SET[0]] = pickle._Unpickler.load_empty_list
    dispatch[pickle.ADDITEMS[0]] = pickle._Unpickler.load_appends
    dispatch[pickle.BUILD[0]] = pickle._Unpickler.load_pop  # drops a state
    dispatch[pickle.FRAME[0]] = lambda self: self.read(8)  # as long as it says, or not

    def __init__(self, data):
        """Start at the first byte of `data`."""
        self._file = _Program(data[:LARGEST])
        super().__init__(self._file, encoding="utf-8")  # of Python 2's text
        self.storages, self._pairs_left = {}, min(len(data), LARGEST)

    @property
    def at(self) -> int:
        """Position in the data, after the last pickle that was read."""
        return self._file.tell()

    def load(self):
        """Run the next pickle.

        Returns:
          What it describes, of dicts, lists, tuples, `Tensor`, `Storage`, dtypes, text, bytes,
          numbers and None. A device, a Counter and a set of protocol 2 are None, a later set is a
          list.

        Raises:
          UserError: if the pickle is damaged, too long, or asks for anything else.
        """
        self.memo = {}
        try:
            return super().load()
        except (UserError, MemoryError):
            raise
        except EOFError as error:
            raise UserError(f"its pickle ends too early, or after {LARGEST} bytes") from error
        except Exception as error:  # they differ by what is damaged
            reason = f"{type(error).__name__}: {error!s:.120}"
            raise UserError(f"its pickle is damaged ({reason})") from error

    def find_class(self, module, name):
        """Return our stand-in for a global."""
        if (module, name) == ("collections", "OrderedDict"):
            return self._ordered_dict
        if (module, name) not in _GLOBALS:
            raise UserError(
                f"its pickle asks for {f'{module}.{name}'!r:.120}, which is not on the list of "
                f"what tensors and plain containers need; nothing was run"
            )
        return _GLOBALS[module, name]

    def persistent_load(self, pid):
        """Return the `Storage` that a reference names."""
        match pid:
            case ("storage", np.dtype() as kind, str(key), _, int(length), *view) if length >= 0:
                start, part = 0, length
            case _:
                raise UserError("its pickle refers to something else than a storage")
        match view:
            case [] | [None]:
                pass
            case [(_, int(start), int(part))] if min(start, part) >= 0 and start + part <= length:
                pass
            case _:
                raise UserError(f"its pickle views a part of storage {key!r:.80} beyond its end")
        if self.storages.setdefault(key, (kind, length)) != (kind, length):
            raise UserError(f"its pickle has two types or lengths for storage {key!r:.80}")
        return Storage(key, kind, start, part)

    def _ordered_dict(self, pairs=()):
        self._pairs_left -= len(pairs)  # the same long list may come again and again
        if self._pairs_left < 0:
            raise UserError("its pickle makes the same dicts again and again")
        made = _Dict()
        for key, value in pairs:
            made[key] = value
        return made


def _same(value):
    return value


def _left_out(first=None, second=None):
    return None


def _parameter(tensor, requires_grad=True, hooks=None):
    if type(tensor) is not Tensor:
        raise UserError("a parameter has no tensor")
    return tensor


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    kind = storage.kind if type(storage) is Storage else None
    return _tensor_of_kind(storage, offset, shape, strides, requires_grad, hooks, kind, metadata)


def _tensor_of_kind(storage, offset, shape, strides, requires_grad, hooks, kind, metadata=None):
    if type(storage) is not Storage or not isinstance(kind, np.dtype):
        raise UserError("a tensor has no storage or no type")
    if kind != storage.kind and storage.start:
        raise UserError("a tensor views a part of a storage of another type")
    if metadata:
        raise UserError("a tensor is negated or conjugated lazily; resolve_neg() would store it")
    if type(shape) is not tuple or type(strides) is not tuple:
        raise UserError("a tensor's shape or strides are no tuple")
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise UserError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number < 2**63:
            raise UserError("a tensor's offset, shape or strides are no natural numbers")
    room = storage.length * storage.kind.itemsize // kind.itemsize
    steps = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
    end = offset + (steps + 1 if all(shape) else 0)
    if end > room:
        raise UserError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} ends at value {end} "
            f"of storage {storage.key!r:.80}, which has {room}"
        )
    return Tensor(storage.key, kind, storage.start + offset, shape, strides)


_STORAGES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": jnp.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_KINDS = [np.dtype(kind) for kind in (*_STORAGES.values(), np.uint16, np.uint32, np.uint64)]

# All that a pickle may ask for, besides an OrderedDict. Only the functions can be called.
_GLOBALS = {
    ("collections", "Counter"): _left_out,  # in the state of a learning rate schedule
    ("builtins", "set"): _left_out,
    ("__builtin__", "set"): _left_out,  # Python 2's name, which protocol 2 keeps
    ("torch", "device"): _left_out,
    ("torch", "Size"): _same,
    ("torch._utils", "_rebuild_tensor"): _tensor,  # PyTorch before 0.4
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_kind,  # of the kinds without a storage type
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,  # PyTorch before 0.4
    ("torch.storage", "UntypedStorage"): np.dtype(np.uint8),
    **{("torch", f"{name}Storage"): np.dtype(kind) for name, kind in _STORAGES.items()},
    **{("torch", kind.name): kind for kind in _KINDS},
}
