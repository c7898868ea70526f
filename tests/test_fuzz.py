"""The fuzz launch: what it finds, and that it finds nothing."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from tests.fuzz import children, datasets, mutations, runs, weights

ROOT = pathlib.Path(__file__).parents[1]


def test_the_first_small_file_of_each_reader_is_read(tmp_path, monkeypatch):
    for name in ("no_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "")  # what the server sets goes with the test
    readers = [*weights.readers(), *datasets.readers(), *runs.readers()]
    assert len({reader.name for reader in readers}) == len(readers)
    for reader in readers:
        whole = dataclasses.replace(reader, seconds=60, mebibytes=4000)
        folder = tmp_path / reader.name
        folder.mkdir()
        outcome = children.check(whole, folder, reader.wrap(reader.seeds[0]))
        assert outcome == ("read", ""), reader.name


def test_an_input_depends_on_its_numbers_alone():
    reader = children.Reader("a reader", [b"some bytes 123", b"more"], read=None)
    inputs = [children.make(reader, 0, number) for number in range(20)]
    assert inputs == [children.make(reader, 0, number) for number in range(20)]
    assert len(set(inputs)) == 20
    assert inputs[3] != children.make(reader, 1, 3)
    assert all(len(data) <= mutations._LONGEST for data in inputs)


# Readers with faults, each of one input in five.
PLANTED = """
import dataclasses, json, os, sys, time
from dag_jax.errors import UserError
from tests.fuzz import children

def planted(act):
    def read(folder, data):
        if data[0] % 5 == 0:
            act()
        raise UserError("a clear error")
    return read

def lines():
    raise UserError("one\\ntwo")

def endless():
    while True:
        pass

def memory():
    bytearray(300 << 20)

acts = {"key": lambda: {}["a"], "crash": os.abort, "lines": lines, "endless": endless,
        "memory": memory, "asleep": lambda: time.sleep(600)}
children.mutated = lambda seeds, random: random.randbytes(4)
children._PATIENCE = 5
for name, act in acts.items():
    reader = children.Reader(name, [b""], planted(act), seconds=0.3)
    counts, faults, following = children.batch(reader, 0, 0, 12)
    right = [n for n in range(12) if children.make(reader, 0, n)[0] % 5 == 0]
    print(json.dumps([name, counts, [(n, fault) for n, fault, _ in faults], following, right]))
"""


@pytest.mark.slow
def test_faults_are_found():
    output = subprocess.check_output([sys.executable, "-c", PLANTED], cwd=ROOT, text=True)
    expected = {"key": "KeyError", "lines": "a message of 2 lines", "endless": "too long"}
    expected |= {"memory": "too much memory", "crash": "signal 6", "asleep": "hangs"}
    for line in output.splitlines():
        name, counts, faults, following, right = json.loads(line)
        assert right, "choose other numbers"
        for _, fault in faults:
            assert expected.pop(name, fault) in fault or name in ("memory", "endless")
        if name in ("crash", "asleep"):  # the next batch begins after it
            assert [number for number, _ in faults] == right[:1] and following == right[0] + 1
        else:
            assert counts["refused"] == 12 - len(faults) and following == 12
            assert {number for number, _ in faults} <= set(right)
    assert not expected


@pytest.mark.slow
def test_nothing_is_found_in_a_few_seconds(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--minutes=0.15", f"--folder={tmp_path}"]
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr + process.stdout
    assert not list(tmp_path.iterdir())
    assert int(process.stdout.splitlines()[-1].split()[1].replace(",", "")) > 300
