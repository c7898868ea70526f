import pickle
import time
import tracemalloc

import numpy as np
import pytest

from dag_jax.weights.torch_pickle import LARGEST, MOST_READS, Storage, Tensor, Unpickler, _Program

TREE = {
    "text": "é" * 300,
    "numbers": [0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**31, -(2**63), 2**100, 0.1, -2.5],
    "others": (None, True, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, b"", b"ab" * 200),
    3: {"nested": {"deeper": [[1]]}},
    "again": ["shared"] * 3,
    "many": list(range(3000)),
}
DICT = b"ccollections\nOrderedDict\n"


def load(program):
    return Unpickler(program).load()


def text(value):
    return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()


def storage(key="0", length=24):
    return (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
        + b"J" + length.to_bytes(4, "little") + b"tQ"
    )  # fmt: skip


def tensor(shape=b"K\x18\x85", strides=b"K\x01\x85"):
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return function + b"(" + storage() + b"K\x00" + shape + strides + b"\x89}tR"


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_containers_come_back_as_they_were(protocol):
    tree = TREE | {"shared": TREE["numbers"]}
    assert load(pickle.dumps(tree, protocol)) == tree
    assert load(pickle._dumps(tree, protocol)) == tree


def test_sets_are_left_out_or_lists():
    assert load(pickle.dumps({"a": {1, 2}}, 2)) == {"a": None}
    assert sorted(load(pickle.dumps({1, 2}, 4))) == [1, 2]


@pytest.mark.parametrize("protocol", [2, 4])
def test_one_pickle_after_another(protocol):
    pickles = [pickle.dumps(tree, protocol) for tree in (1, ["a"] * 2, ["b"] * 2)]
    unpickler = Unpickler(b"".join(pickles) + b"rest")
    assert [unpickler.load() for _ in pickles] == [1, ["a"] * 2, ["b"] * 2]
    assert unpickler.at == sum(map(len, pickles))


def test_a_tensor_and_its_storage():
    unpickler = Unpickler(b"\x80\x02" + tensor() + b".")
    assert unpickler.load() == Tensor("0", np.dtype("float32"), 0, (24,), (1,))
    assert unpickler.storages == {"0": (np.dtype("float32"), 24)}
    assert load(storage("7", 3) + b".") == Storage("7", np.dtype("float32"), 0, 3)


def test_a_state_is_dropped_and_changes_nothing():
    assert load(b"}}b.") == {}
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    load(function + b"N}" + text("__defaults__") + b")s\x86b.")
    assert load(tensor() + b"}b.") == load(tensor() + b".")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"", "ends too early"),
        (b"\x80\x02", "ends too early"),
        (b"X\xff\xff\xff\xffa.", "ends too early"),
        (b".", "pop from empty list"),
        (b"(.", "pop from empty list"),
        (b"h\x05.", "not found at index 5"),
        (b"X\x01\x00\x00\x00\xff.", "can't decode"),
        (b"\x80\x09N.", "unsupported pickle protocol"),
        (b"N0.", "b'0', no operation"),
        (b"(ios\nsystem\n.", "b'i', no operation"),
        (b"(X\x01\x00\x00\x00ao.", "b'o', no operation"),
        (DICT + b")\x81.", "b'\\\\x81', no operation"),  # a new object, past its function
        (b"\x82\x01.", "b'\\\\x82', no operation"),  # the registry of copyreg
        (b"Pstorage\n.", "b'P', no operation"),
        (b"I1\n.", "b'I', no operation"),
        (b"\x8b\xff\xff\xff\x7f1.", "no operation"),  # LONG4
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f1.", "no operation"),  # BYTEARRAY8
        (b"\x97.", "no operation"),  # a buffer from outside
        (b"(cos\nsystem\n.", "asks for 'os.system'.*nothing was run"),
        (b"c_codecs\nencode\n.", "asks for '_codecs.encode'"),  # bytes of protocol 2
        (b"NN\x93.", "requires str"),
        (b"NNa.", "no attribute 'append'"),
        (b"NNNs.", "does not support item assignment"),
        (b"}(Nu.", "index out of range"),
        (b"}Q.", "refers to something else than a storage"),
        (storage(length=3)[:-2] + b"NN\x86tQ.", "refers to something else|beyond its end"),
        (b"N)R.", "not callable"),
        (tensor() + b")R.", "not callable"),
        (b"ctorch\nfloat32\n)R.", "not callable"),
        (DICT + b"NNN\x87R.", "positional arguments"),
        (DICT + b"N\x85R.", "has no len"),
        (DICT + b"]Na\x85R.", "cannot unpack"),
        (b"}" + tensor() + b"Ns.", "a key of a dict is a Tensor"),
        (b"}(K\x01tNs.", "a key of a dict is a tuple"),
        (b"}\x8a\x0a" + b"\x01" * 10 + b"Ns.", "a key of a dict is a int"),
    ],
)
def test_other_programs_are_refused(program, message):
    with pytest.raises(ValueError, match=message):
        load(program)


def twice_itself(times):
    """A tuple of two of a tuple of two of ...: small, and 2 to the power of `times` leaves."""
    doublings = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))
    return b"K\x01" + doublings


NUMBERS = b"".join(
    b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(20_000)
)
BOMBS = {
    "a memo of four thousand million places": b"Nr\xff\xff\xff\xff.",
    "a key that takes 2^200 steps to hash": b"}" + twice_itself(200) + b"Ns.",
    "deep tuples as a key": b"}N" + b"\x85" * 100_000 + b"Ns.",
    "deep marks": b"(" * 100_000 + b"t" * 100_000 + b".",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "one list made a dict again and again": (
        b"](" + b"K\x01K\x02\x86" * 5_000 + b"eq\x00" + (DICT + b"h\x00\x85R") * 5_000 + b"."
    ),
    "one call with many arguments again and again": (
        b"ccollections\nCounter\nq\x01(" + b"N" * 20_000 + b"tq\x00" + b"h\x01h\x00R" * 20_000
    ),
    "keys of one hash": b"}(" + NUMBERS + b"u.",
    "numbers of 255 bytes": (
        tensor(b"(" + (b"\x8a\xff" + b"\x7f" * 255) * 60 + b"t", b"(" + b"K\x00" * 60 + b"t") + b"."
    ),
    "a frame beyond the end": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_time_and_memory(name):
    start = time.process_time()
    tracemalloc.start()
    try:
        load(BOMBS[name])
    except ValueError:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 4 and peak < 40 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("run", [b"(", b"}", b"N\x94", b"](", b"N\x85"])
def test_a_byte_of_a_program_makes_a_bounded_number_of_bytes(run):
    program = (run * 2**17)[: 2**17]
    tracemalloc.start()
    with pytest.raises(ValueError, match="ends too early"):
        load(program)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 120 * len(program)


@pytest.mark.parametrize("run", [b"N\x94", b"}"])
def test_the_pieces_of_a_program_are_bounded(run, monkeypatch):
    monkeypatch.setattr(_Program, "reads_left", MOST_READS // 20)
    program = run * (LARGEST // len(run))
    tracemalloc.start()
    with pytest.raises(ValueError, match="its pickle goes on after 800000 pieces"):
        load(program)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 130 * MOST_READS // 20 + LARGEST


def test_a_program_beyond_the_limit_is_refused():
    with pytest.raises(ValueError, match=f"ends too early, or after {LARGEST} bytes"):
        load(b"B" + (2 * LARGEST).to_bytes(4, "little") + bytes(2 * LARGEST) + b".")
