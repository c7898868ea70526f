"""Conversion by its launch, of a miniature, and by its function."""

import numpy as np
import pytest

from dag_jax import networks
from dag_jax.weights import store
from experiments import conversion

pytestmark = pytest.mark.slow  # it compiles whole networks


@pytest.fixture(scope="session")
def alex(tmp_path_factory, write_caffemodel, caffe_blobs):
    """The shipped miniature of FCN-Alex as a caffemodel."""
    parameters = networks.load("fcn_alex", miniature=True).parameters
    line = 1 - np.abs(np.arange(31) - 15) / 16
    kernel = np.outer(line, line)[None, None] * np.eye(21)[:, :, None, None]
    blobs = caffe_blobs(parameters) | {"upscore": [np.float32(kernel)]}
    return write_caffemodel(tmp_path_factory.mktemp("caffe") / "alex.caffemodel", blobs)


def test_launch_writes_a_checkpoint_that_loads(launch, alex, tmp_path):
    output = tmp_path / "new" / "alex.safetensors"
    options = ["--miniature", "--network=fcn_alex", f"--source={alex}", f"--output={output}"]
    process = launch("convert_weights", *options)
    assert process.stdout == f"{output}: fcn_alex, read as caffe_fcn\n"
    network = networks.load("fcn_alex", miniature=True, checkpoint=output)
    shipped = networks.load("fcn_alex", miniature=True)
    for path in (("fc6", "kernel"), ("backbone", "conv2", "bias")):
        own, expected = network.parameters, shipped.parameters
        for key in path:
            own, expected = own[key], expected[key]
        np.testing.assert_array_equal(own, expected)
    record = store.load(output)[1]
    assert record["sources"] == [
        {
            "name": "alex.caffemodel",
            "bytes": alex.stat().st_size,
            "sha256": conversion.sha256(alex),
        }
    ]
    assert (record["network"], record["layout"], record["dense"]) == ("fcn_alex", "caffe_fcn", [])

    before = output.read_bytes()
    process = launch("convert_weights", *options, fails=True)
    assert process.stderr.endswith("exists already; name another --output, or remove it\n")
    assert output.read_bytes() == before


def test_bad_input_is_refused_in_one_line(alex, tmp_path):
    output = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="no such file: .*none.caffemodel"):
        conversion.convert_files("fcn_vgg", [tmp_path / "none.caffemodel"], output)
    (tmp_path / "page.caffemodel").write_text("<html>gone</html>")
    with pytest.raises(ValueError, match="not a readable caffemodel"):
        conversion.convert_files("fcn_vgg", [tmp_path / "page.caffemodel"], output)
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        conversion.convert_files("fcn_vgg", [tmp_path / "net.pth"], output)
    with pytest.raises(ValueError, match="(?s)alex.caffemodel as fr_zf_07: .*left over: score_fr"):
        conversion.convert_files("fr_zf_07", [alex], output, miniature=True)
    assert not output.exists()


def test_launch_says_what_it_needs(launch):
    process = launch("convert_weights", "--network=fcn_vgg", fails=True)
    assert "--network and --source are needed" in process.stdout + process.stderr
