import itertools

import jax
import jax.numpy as jnp
import pytest

from experiments.measure import timing


def test_compare_by_hand():
    comparison = timing.compare([(2.0, 1.0), (3.0, 2.0), (1.0, 2.0)])
    assert comparison == {"seconds": [2.0, 2.0], "ratio": 1.5, "range": [0.5, 2.0]}


def test_functions_take_turns_after_a_call_of_each():
    calls = []
    functions = [lambda: calls.append("a"), lambda: calls.append("b")]
    times = timing.alternate(functions, 2)
    assert "".join(calls) == "ababab" and [len(row) for row in times] == [2, 2]
    calls.clear()
    timing.alternate(functions, 1, warm=False)
    assert calls == ["a", "b"]


@pytest.mark.parametrize(
    ("count", "parts", "multiple", "expected"),
    [
        (100, 4, 1, [25, 25, 25, 25]),
        (100, 4, 8, [24, 24, 24, 28]),
        (100, 4, 16, [32, 16, 32, 20]),
        (6, 2, 4, [4, 2]),
        (3, 4, 4, [3]),
        (7, 1, 2, [7]),
        (1, 3, 1, [1]),
    ],
)
def test_split(count, parts, multiple, expected):
    assert timing.split(count, parts, multiple) == expected


def test_iterators_are_pulled_in_turns():
    order = []

    def source(name):
        for number in itertools.count():
            order.append(f"{name}{number}")
            yield number

    times, items = timing.pull_in_turns([source("a"), source("b")], [2, 1])
    assert order == ["a0", "a1", "b0", "b1", "a2", "b2"]
    assert items == [[0, 1, 2], [0, 1, 2]] and [len(row) for row in times] == [2, 2]


def test_account_counts_a_product():
    compiled = jax.jit(jnp.dot).lower(jnp.ones((8, 16)), jnp.ones((16, 4))).compile()
    account = timing.account(compiled)
    assert account["flops"] == 2 * 8 * 16 * 4 and account["temporaries_mib"] >= 0
