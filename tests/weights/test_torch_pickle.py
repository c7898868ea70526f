import pickle
import time
import tracemalloc

import pytest

from dag_jax.weights.torch_pickle import Kind, Storage, Tensor, Unpickler

TREE = {
    "text": "é" * 300,
    "numbers": [0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**31, -(2**63), 2**100, 0.1, -2.5],
    "others": (
        None,
        True,
        False,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        {},
        b"",
        b"ab" * 200,
    ),
    3: {"nested": {"deeper": [[1]]}},
    "again": ["shared"] * 3,
}


def load(text):
    return Unpickler(text).load()


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
    tree = TREE | {"shared": TREE["numbers"], "many": list(range(3000))}
    assert load(pickle.dumps(tree, protocol)) == tree
    assert load(pickle._dumps(tree, protocol)) == tree
    assert load(pickle.dumps("a" * 70_000, protocol)) == "a" * 70_000


def test_sets_and_bytes_of_protocol_2():
    assert load(pickle.dumps({"a": {1, 2}}, 2)) == {"a": None}
    assert sorted(load(pickle.dumps({1, 2}, 4))) == [1, 2]
    with pytest.raises(ValueError, match="asks for '_codecs.encode'"):
        load(pickle.dumps(b"ab", 2))


def test_one_pickle_after_another():
    unpickler = Unpickler(pickle.dumps(1) + pickle.dumps([2]) + b"rest")
    assert [unpickler.load(), unpickler.load(), unpickler.take(4)] == [1, [2], b"rest"]
    with pytest.raises(ValueError, match="ends 1 bytes too early"):
        unpickler.load()


def test_a_tensor_and_its_storage():
    unpickler = Unpickler(b"\x80\x02" + tensor() + b".")
    assert unpickler.load() == Tensor("0", Kind("float32"), 0, (24,), (1,))
    assert unpickler.storages == {"0": (Kind("float32"), 24)}
    assert load(storage("7", 3) + b".") == Storage("7", Kind("float32"), 0, 3)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"", "ends 1 bytes too early"),
        (b"\x80\x02", "ends 1 bytes too early"),
        (b".", "empty stack"),
        (b"(.", "empty stack"),
        (b"N0.", "b'0', no operation"),
        (b"(ios\nsystem\n.", "b'i', no operation"),
        (b"(cos\nsystem\no.", "asks for 'os.system'"),
        (b"(X\x01\x00\x00\x00ao.", "b'o', no operation"),
        (b"\x82\x01.", "b'\\\\x82', no operation"),  # the registry of copyreg
        (b"Pstorage\n.", "b'P', no operation"),
        (b"I1\n.", "b'I', no operation"),
        (b"\x8b\xff\xff\xff\x7f1.", "no operation"),  # LONG4
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f1.", "no operation"),  # BYTEARRAY8
        (b"\x97.", "no operation"),  # a buffer from outside
        (b"X\xff\xff\xff\xffa.", "too early"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "too early"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.", "too early"),
        (b"T\xff\xff\xff\xffa.", "too early"),
        (b"B\xff\xff\xff\xffa.", "too early"),
        (b"X\x01\x00\x00\x00\xff.", "can't decode"),
        (b"cos", "ends within a line"),
        (b"cos\nsystem", "ends within a line"),
        (b"NN\x93.", "whose name is no text"),
        (b"h\x05.", "asks for value 5, which it has not kept"),
        (b"q\x05.", "no object on the stack"),
        (b"t.", "asks for a mark"),
        (b"NNa.", "no list on the stack"),
        (b"N(Ne.", "no list on the stack"),
        (b"NNNs.", "no dict on the stack"),
        (b"](NNu.", "no dict on the stack"),
        (b"}(Nu.", "a key without a value"),
        (b"}Q.", "refers to something else than a storage"),
        (b")Q.", "refers to something else than a storage"),
        (b"}}b.", None),
        (b"]}b.", "sets the state of something that has none"),
        (b"})b.", "sets the state of something that has none"),
        (tensor() + b"}b.", "sets the state of something that has none"),
        (b"ccollections\nOrderedDict\n}b.", "sets the state of something that has none"),
        (b"ctorch\nfloat32\n}b.", "sets the state of something that has none"),
        (b"N)R.", "calls what is no function"),
        (tensor() + b")R.", "calls what is no function"),
        (b"ccollections\nOrderedDict\n]R.", "calls what is no function"),
        (b"ccollections\nOrderedDict\nNNN\x87R.", "calls a function wrongly"),
        (b"ccollections\nOrderedDict\nN\x85R.", "something else than pairs"),
        (b"ccollections\nOrderedDict\n]Na\x85R.", "something else than pairs"),
        (b"}" + tensor() + b"Ns.", "a key of a dict is a Tensor"),
        (b"}ccollections\nOrderedDict\nNs.", "a key of a dict is a function"),
        (storage(length=3)[:-2] + b"NN\x86ttQ.", "asks for a mark|something else"),
    ],
)
def test_other_programs_are_refused(program, message):
    if message is None:
        load(program)
        return
    with pytest.raises(ValueError, match=message):
        load(program)


def twice_itself(times):
    """A tuple of two of a tuple of two of ...: small, and 2 to the power of `times` leaves."""
    kept = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))
    return b"K\x01" + kept


DICT = b"ccollections\nOrderedDict\n"
BOMBS = {
    "a memo of four thousand million places": b"Nr\xff\xff\xff\xff.",
    "a key that takes 2^200 steps to hash": b"}" + twice_itself(200) + b"Ns.",
    "deep tuples": b"N" + b"\x85" * 200_000 + b".",
    "deep tuples as a key": b"}N" + b"\x85" * 200_000 + b"Ns.",
    "deep marks": b"(" * 200_000 + b"t" * 200_000 + b".",
    "deep lists": b"]" * 200_000 + b"a" * 199_999 + b".",
    "many operations": b"N" * 3_000_000 + b".",
    "one list made a dict again and again": (
        b"](" + b"K\x01K\x02\x86" * 20_000 + b"eq\x00" + (DICT + b"h\x00\x85R") * 20_000 + b"."
    ),
    "one call with many arguments again and again": (
        b"ccollections\nCounter\nq\x01("
        + b"N" * 20_000
        + b"tq\x00"
        + b"h\x01h\x00R" * 20_000
        + b"."
    ),
    "keys of one hash": (
        b"}("
        + b"".join(
            b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(20_000)
        )
        + b"u."
    ),
    "numbers of 255 bytes": (
        tensor(
            shape=b"(" + (b"\x8a\xff" + b"\x7f" * 255) * 60 + b"t",
            strides=b"(" + b"K\x00" * 60 + b"t",
        )
        + b"."
    ),
    "a frame beyond the end": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
}


@pytest.mark.slow  # seconds each
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_time_and_memory(name):
    start = time.process_time()
    load_or_refuse(BOMBS[name])
    assert time.process_time() - start < 4
    tracemalloc.start()
    load_or_refuse(BOMBS[name][:300_000])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20


def load_or_refuse(program):
    try:
        load(program)
    except ValueError:
        pass
