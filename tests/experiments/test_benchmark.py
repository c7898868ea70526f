"""The benchmark on one small case. How fast anything is, no test asserts."""

import json

import pytest

pytestmark = pytest.mark.slow  # it compiles whole networks


def test_measures_pairs_and_writes_them(launch, tmp_path):
    flags = ("--cases=fcn_alex:miniature", "--size=64", "--iterations=2", "--pairs=3")
    process = launch("benchmark", *flags, f"--workdir={tmp_path}")
    content = json.loads((tmp_path / "benchmark.json").read_text())
    (row,) = content["rows"]
    assert row["case"] == "fcn_alex miniature, 64 px" and row["pairs"] == 3
    assert row["ratio_range"][0] <= row["ratio_median"] <= row["ratio_range"][1]
    assert row["engine_ms"] > 0 and row["bare_ms"] > 0
    assert row["case"] in process.stdout and f"results: {tmp_path}" in process.stdout


def test_an_unknown_case_is_named(launch):
    process = launch("benchmark", "--cases=fcn_alex:medium", fails=True)
    assert "fcn_alex:medium is not <network>:miniature" in process.stderr + process.stdout
