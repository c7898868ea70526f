"""The pickles inside PyTorch's checkpoints, read without running anything.

A pickle is a program for a stack machine, and a foreign one must not import or call what it likes.
Nor is Python's own unpickler enough once it refuses foreign names: a pickle of nine bytes, with a
large index into the memo, makes it take 8 GB, and three hundred bytes of tuples within tuples, as a
key, take it centuries to hash. So the machine here is our own. It knows the operations that tensors
and plain containers need, each costs little time and memory, and what a pickle would import is
looked up in a closed table of inert stand-ins.

Reference: https://github.com/python/cpython/blob/main/Lib/pickletools.py (the operations), and
torch/_utils.py and torch/serialization.py of https://github.com/pytorch/pytorch
"""

import dataclasses
import pickle
import struct

import numpy as np

from dag_jax.errors import UserError

# 30,000 tensors, as one takes about 35 operations, and a second of a hostile file.
_MOST_WORK = 1 << 20
_MOST_DIMENSIONS = 64  # as NumPy and PyTorch have it


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type of values: NumPy's name of it, or bfloat16."""

    name: str

    @property
    def itemsize(self):
        """Bytes of one value."""
        return 2 if self.name == "bfloat16" else np.dtype(self.name).itemsize


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of values in the file; start and length count values."""

    key: str
    kind: Kind
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, within its bounds; offset and strides count values of `kind`."""

    key: str
    kind: Kind
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Unpickler:
    """A stack machine for the pickle operations that tensors and plain containers need.

    Attributes:
      at: position in the data, after the last pickle that was read.
      work: number of operations so far.
      storages: {key: (kind, length)} of every storage that the pickles so far refer to.
    """

    def __init__(self, data):
        self.data, self.at, self.work = data, 0, 0
        self.storages = {}

    def load(self):
        """Run the pickle that begins at `at`.

        Returns:
          What it describes, of dicts, lists, tuples, `Tensor`, `Storage`, `Kind`, text, bytes,
          numbers and None. A device, a Counter and a set of protocol 2 are None, a later set is a
          list.

        Raises:
          ValueError: if the pickle is damaged, or asks for anything else.
        """
        self.stack, self.below, self.memo = [], [], {}
        while (code := self.take(1)) != pickle.STOP:
            self._spend(1)
            if code not in _OPERATIONS:
                raise UserError(
                    f"byte {self.at - 1} of its pickle is {code!r}, no operation that tensors need"
                )
            _OPERATIONS[code](self)
        return self._pop()

    def skip(self, count):
        """Move on by so many bytes."""
        if count > len(self.data) - self.at:
            raise UserError(f"it ends {count - len(self.data) + self.at} bytes too early")
        self.at += count

    def take(self, count):
        """The next bytes."""
        at = self.at
        self.skip(count)
        return self.data[at : self.at]

    def _spend(self, work):
        self.work += work
        if self.work > _MOST_WORK:
            raise UserError(f"its pickle takes more than {_MOST_WORK} operations")

    def _unsigned(self, width):
        return int.from_bytes(self.take(width), "little")

    def _signed(self, width):
        return int.from_bytes(self.take(width), "little", signed=True)

    def _counted(self, width):
        return self.take(self._unsigned(width))

    def _text(self, width):
        return self._counted(width).decode()

    def _line(self):
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise UserError("its pickle ends within a line")
        return self.take(end + 1 - self.at)[:-1].decode()

    def _push(self, value):
        self.stack.append(value)

    def _pop(self):
        if not self.stack:
            raise UserError("its pickle takes from an empty stack")
        return self.stack.pop()

    def _top(self, kind=object):
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise UserError(f"its pickle has no {kind.__name__} on the stack where it needs one")
        return self.stack[-1]

    def _mark(self):
        self.below.append(self.stack)
        self.stack = []

    def _pop_mark(self):
        if not self.below:
            raise UserError("its pickle asks for a mark where none is")
        items, self.stack = self.stack, self.below.pop()
        return items

    def _tuple(self, count):
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _append(self):
        value = self._pop()
        self._top(list).append(value)

    def _extend(self):
        items = self._pop_mark()
        self._top(list).extend(items)

    def _set_item(self):
        value, key = self._pop(), self._pop()
        _put(self._top(dict), key, value)

    def _set_items(self):
        items = self._pop_mark()
        if len(items) % 2:
            raise UserError("its pickle sets a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self._top(dict), key, value)

    def _get(self, index):
        if index not in self.memo:
            raise UserError(f"its pickle asks for value {index}, which it has not kept")
        self._push(self.memo[index])

    def _keep(self, index):
        self.memo[index] = self._top()

    def _find(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise UserError("its pickle asks for a global whose name is no text")
        if (module, name) not in _GLOBALS:
            raise UserError(
                f"its pickle asks for {f'{module}.{name}'!r:.120}, which is not on the list of "
                f"what tensors and plain containers need; nothing was run"
            )
        self._push(_GLOBALS[module, name])

    def _find_on_stack(self):
        name, module = self._pop(), self._pop()
        self._find(module, name)

    def _call(self):
        arguments, function = self._pop(), self._pop()
        if not callable(function) or type(arguments) is not tuple:
            raise UserError("its pickle calls what is no function")
        # The same long argument may come again and again.
        self._spend(len(arguments))
        self._spend(sum(len(item) for item in arguments if type(item) in (dict, list, tuple)))
        try:
            self._push(function(*arguments))
        except TypeError as error:
            raise UserError(f"its pickle calls a function wrongly ({error})") from error

    def _build(self):
        """Drop a state: `_metadata` of an OrderedDict, the gradient flags of an old Parameter."""
        state, target = self._pop(), self._top()
        of_dict = type(target) is dict and type(state) is dict
        of_parameter = type(target) is Tensor and type(state) is tuple and len(state) == 3
        if not (of_dict or of_parameter):
            raise UserError("its pickle sets the state of something that has none")

    def _persistent(self):
        match self._pop():
            case ("storage", Kind() as kind, str(key), _, int(length), *view) if length >= 0:
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
        self._push(Storage(key, kind, start, part))


def _put(mapping, key, value):
    # Never a tuple: one of tuples within tuples takes for ever to hash.
    if type(key) not in (str, int, float, bool) or (type(key) is int and key.bit_length() > 64):
        raise UserError(f"a key of a dict is a {type(key).__name__}, not text or a number")
    mapping[key] = value


def _dict(pairs=()):
    if type(pairs) not in (list, tuple):
        raise UserError("an OrderedDict is made of something else than pairs")
    result = {}
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise UserError("an OrderedDict is made of something else than pairs")
        _put(result, *pair)
    return result


def _size(numbers):
    return numbers


def _left_out(*_):
    return None


def _parameter(tensor, requires_grad=True, hooks=None):
    if type(tensor) is not Tensor:
        raise UserError("a parameter has no tensor")
    return tensor


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    kind = storage.kind if type(storage) is Storage else None
    return _tensor_of_kind(storage, offset, shape, strides, requires_grad, hooks, kind, metadata)


def _tensor_of_kind(storage, offset, shape, strides, requires_grad, hooks, kind, metadata=None):
    if type(storage) is not Storage or type(kind) is not Kind:
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
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
_KINDS = (*_STORAGES.values(), "uint16", "uint32", "uint64")

# All that a pickle may ask for. Of these only the functions can be called.
_GLOBALS = {
    ("collections", "OrderedDict"): _dict,
    ("collections", "Counter"): _left_out,  # in the state of a learning rate schedule
    ("builtins", "set"): _left_out,
    ("__builtin__", "set"): _left_out,  # Python 2's name, which protocol 2 keeps
    ("torch", "device"): _left_out,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,  # PyTorch before 0.4
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_kind,  # of the kinds without a storage type
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,  # PyTorch before 0.4
    ("torch.storage", "UntypedStorage"): Kind("uint8"),
    **{("torch", f"{name}Storage"): Kind(kind) for name, kind in _STORAGES.items()},
    **{("torch", kind): Kind(kind) for kind in _KINDS},
}

_OPERATIONS = {
    pickle.PROTO: lambda self: self.skip(1),
    pickle.FRAME: lambda self: self.skip(8),  # its length only helps to read ahead
    pickle.NONE: lambda self: self._push(None),
    pickle.NEWTRUE: lambda self: self._push(True),
    pickle.NEWFALSE: lambda self: self._push(False),
    pickle.BININT: lambda self: self._push(self._signed(4)),
    pickle.BININT1: lambda self: self._push(self._unsigned(1)),
    pickle.BININT2: lambda self: self._push(self._unsigned(2)),
    pickle.LONG1: lambda self: self._push(self._signed(self._unsigned(1))),
    pickle.BINFLOAT: lambda self: self._push(struct.unpack(">d", self.take(8))[0]),
    pickle.BINUNICODE: lambda self: self._push(self._text(4)),
    pickle.SHORT_BINUNICODE: lambda self: self._push(self._text(1)),
    pickle.BINUNICODE8: lambda self: self._push(self._text(8)),
    pickle.BINSTRING: lambda self: self._push(self._text(4)),  # text of Python 2
    pickle.SHORT_BINSTRING: lambda self: self._push(self._text(1)),
    pickle.BINBYTES: lambda self: self._push(self._counted(4)),
    pickle.SHORT_BINBYTES: lambda self: self._push(self._counted(1)),
    pickle.BINBYTES8: lambda self: self._push(self._counted(8)),
    pickle.EMPTY_DICT: lambda self: self._push({}),
    pickle.EMPTY_LIST: lambda self: self._push([]),
    pickle.EMPTY_SET: lambda self: self._push([]),
    pickle.EMPTY_TUPLE: lambda self: self._push(()),
    pickle.TUPLE1: lambda self: self._tuple(1),
    pickle.TUPLE2: lambda self: self._tuple(2),
    pickle.TUPLE3: lambda self: self._tuple(3),
    pickle.TUPLE: lambda self: self._push(tuple(self._pop_mark())),
    pickle.MARK: Unpickler._mark,
    pickle.APPEND: Unpickler._append,
    pickle.APPENDS: Unpickler._extend,
    pickle.ADDITEMS: Unpickler._extend,
    pickle.SETITEM: Unpickler._set_item,
    pickle.SETITEMS: Unpickler._set_items,
    pickle.BINGET: lambda self: self._get(self._unsigned(1)),
    pickle.LONG_BINGET: lambda self: self._get(self._unsigned(4)),
    pickle.BINPUT: lambda self: self._keep(self._unsigned(1)),
    pickle.LONG_BINPUT: lambda self: self._keep(self._unsigned(4)),
    pickle.MEMOIZE: lambda self: self._keep(len(self.memo)),
    pickle.GLOBAL: lambda self: self._find(self._line(), self._line()),
    pickle.STACK_GLOBAL: Unpickler._find_on_stack,
    pickle.REDUCE: Unpickler._call,
    pickle.NEWOBJ: Unpickler._call,
    pickle.BUILD: Unpickler._build,
    pickle.BINPERSID: Unpickler._persistent,
}
