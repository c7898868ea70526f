"""What fails in one process is read by another, until it is tried again."""

from dag_jax.runs.failures import failures, forget, others_go_on


def test_what_fails_is_handed_on_until_it_is_tried_again(tmp_path):
    errors, folder = [], tmp_path / "fcn_alex" / "failed"
    with others_go_on(tmp_path, "fcn_alex", 1, errors):
        assert failures(folder) == []
    assert errors == [] and not folder.exists()
    for process in (1, 2):  # the first is enough
        with others_go_on(tmp_path, "fcn_alex", process, errors):
            raise ValueError("no such luck")
    assert errors == ["FCN-Alex: no such luck"] * 2
    assert failures(folder) == ["process 1: no such luck"]
    forget(tmp_path, ["fcn_alex"], 2, 3)
    assert failures(folder) == ["process 1: no such luck"]
    forget(tmp_path, ["fcn_alex"], 1, 3)
    assert failures(folder) == []
    for process in (1, 2, 5):
        with others_go_on(tmp_path / str(process), "fcn_alex", process, errors):
            raise ValueError("stale")
    forget(tmp_path / "5", ["fcn_alex"], 0, 3)  # a launch of three has no process 5
    forget(tmp_path / "2", ["fcn_alex"], 0, 3)
    assert not failures(tmp_path / "5" / "fcn_alex" / "failed")
    assert failures(tmp_path / "2" / "fcn_alex" / "failed") == ["process 2: stale"]
