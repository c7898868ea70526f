"""Downloads from a server on this machine: whole, in parts, damaged, gone."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import pathlib
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.networks import fetching
from dag_jax.weights import published, store


class Files(http.server.BaseHTTPRequestHandler):
    """Serve `files` by name, and ranges of them; break off after `most` bytes."""

    def __init__(self, *arguments, files, requests, most):
        self.files, self.requests, self.most = files, requests, most
        super().__init__(*arguments)

    def do_GET(self):
        content = self.files.get(self.path)
        self.requests.append(self.headers.get("Range"))
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start, status = 0, 200
        if "Range" in self.headers and self.headers.get("If-Range") == tag:
            start, status = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")), 206
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(status)
        self.send_header("ETag", tag)
        kind = "text/html" if self.path.endswith("html") else "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - start))
        if status == 206:
            end = f"{start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {end}")
        self.end_headers()
        self.wfile.write(content[start:][: self.most.get(self.path)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server: its address, what it serves, the ranges it was asked for, where it breaks off."""
    files, requests, most = {}, [], {}
    handler = functools.partial(Files, files=files, requests=requests, most=most)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", files, requests, most
        running.shutdown()
        thread.join()


def test_a_download_goes_on_where_it_broke_off(server, tmp_path, rng):
    address, files, requests, most = server
    files["/a.bin"] = content = rng.bytes(3_000_000)
    most["/a.bin"] = 1_000_000
    path = tmp_path / "new" / "a.bin"
    with pytest.raises((ConnectionError, OSError)):
        published.download(f"{address}/a.bin", path)
    assert not path.exists() and 0 < (tmp_path / "new" / "a.bin.part").stat().st_size <= 1_000_000
    most.clear()
    published.download(
        f"{address}/a.bin", path, checksum="sha1:" + hashlib.sha1(content).hexdigest()
    )
    assert path.read_bytes() == content
    assert requests[0] is None and requests[1] == "bytes=1000000-"
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


def test_a_part_of_another_version_is_not_gone_on_with(server, tmp_path, rng):
    address, files, _, most = server
    files["/a.bin"], most["/a.bin"] = rng.bytes(5000), 2000
    path = tmp_path / "a.bin"
    with contextlib.suppress(OSError):
        published.download(f"{address}/a.bin", path)
    files["/a.bin"] = content = rng.bytes(4000)
    most.clear()
    published.download(f"{address}/a.bin", path)
    assert path.read_bytes() == content


def test_a_whole_part_is_fetched_anew(server, tmp_path, rng):
    address, files, requests, _ = server
    files["/a.bin"] = content = rng.bytes(500)
    (tmp_path / "a.bin.part").write_bytes(content)
    (tmp_path / "a.bin.part.tag").write_text(f'"{hashlib.md5(content).hexdigest()}"')
    published.download(f"{address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == content and requests == ["bytes=500-", None]


def test_what_is_not_the_file_is_refused(server, tmp_path):
    address, files, _, _ = server
    files |= {"/a.bin": b"damaged", "/page.html": b"<html>sign in</html>"}
    with pytest.raises(ValueError, match="has md5:[0-9a-f]{32}, published is md5:0123"):
        published.download(f"{address}/a.bin", tmp_path / "a.bin", checksum="md5:0123")
    with pytest.raises(ValueError, match="answers with a web page, not with the file"):
        published.download(f"{address}/page.html", tmp_path / "a.bin")
    with pytest.raises(ValueError, match="answers 404"):
        published.download(f"{address}/b.bin", tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_unpack_takes_the_members_and_nothing_else(tmp_path, rng, kind):
    names = ["out/vgg/proposal_final", "out/vgg/detection_final", "out/zf/proposal_final"]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    archive = tmp_path / f"models.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.write(tmp_path / "in" / name, name)
    else:
        with tarfile.open(archive, "w:gz") as file:
            for name in names:
                file.add(tmp_path / "in" / name, name)
    members = ["vgg/proposal_final", "vgg/detection_final"]
    files = published.unpack(archive, members, tmp_path / "out")
    assert [file.read_text() for file in files] == names[:2]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "detection_final",
        "proposal_final",
    ]
    with pytest.raises(ValueError, match="has 2 files named proposal_final"):
        published.unpack(archive, ["proposal_final"], tmp_path / "out")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:40])
    with pytest.raises(ValueError, match="is damaged"):
        published.unpack(archive, members, tmp_path / "out")
    for at, bit in zip(rng.integers(0, len(whole), 200), rng.integers(0, 8, 200), strict=True):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        archive.write_bytes(damaged)
        with contextlib.suppress(UserError):  # not every bit of an archive means anything
            published.unpack(archive, members, tmp_path / "out")


@pytest.mark.slow
def test_launch_fetches_and_converts(launch, server, tmp_path, write_caffemodel, caffe_blobs):
    address, files, _, _ = server
    line = 1 - np.abs(np.arange(31) - 15) / 16
    kernel = np.outer(line, line)[None, None] * np.eye(21)[:, :, None, None]
    parameters = networks.load("fcn_alex", miniature=True).parameters
    blobs = caffe_blobs(parameters) | {"upscore": [np.float32(kernel)]}
    path = write_caffemodel(tmp_path / "alex.caffemodel", blobs)
    files["/alex.caffemodel"] = path.read_bytes()
    workdir = tmp_path / "weights"
    flags = ["--networks=fcn_alex", "--miniature", f"--workdir={workdir}"]
    flags += [f"--address={address}/gone,{address}/alex.caffemodel"]
    process = launch("fetch_weights", *flags)
    checkpoint = workdir / "fcn_alex.safetensors"
    assert process.stdout == f"{checkpoint}: fcn_alex, read as caffe_fcn\n"
    assert (workdir / "downloads" / "fcn-alexnet-pascal.caffemodel").is_file()
    network = networks.load("fcn_alex", miniature=True, checkpoint=checkpoint)
    np.testing.assert_array_equal(network.parameters["fc6"]["kernel"], parameters["fc6"]["kernel"])


def test_a_file_that_is_gone_names_the_way_by_hand(server, tmp_path):
    address, _, _, _ = server
    with pytest.raises(ValueError) as error:
        fetching.fetch("fr_vgg_0712", tmp_path, addresses=[f"{address}/gone"])
    text = str(error.value)
    assert f"{address}/gone answers 404" in text
    assert "--network=fr_vgg_0712 --source=proposal_final,detection_final" in text
    assert published.ORIGINS["fr_vgg_0712"].page in text


def test_what_was_never_published_starts_from_imagenet(
    server, tmp_path, write_caffemodel, caffe_blobs, monkeypatch, capsys
):
    address, files, _, _ = server
    blobs = caffe_blobs(networks.load("fcn_alex_star", miniature=True).parameters)
    blobs = {name: blob for name, blob in blobs.items() if not name.startswith("score")}
    blobs["fc8"] = [np.zeros((1000, 128), np.float32), np.zeros(1000, np.float32)]
    path = write_caffemodel(tmp_path / "classifier.caffemodel", blobs)
    files["/net.caffemodel"] = content = path.read_bytes()
    options = {"addresses": [f"{address}/net.caffemodel"], "miniature": True}
    with pytest.raises(ValueError, match="has sha1:.*, published is sha1:4c8d77de"):
        fetching.fetch("fcn_alex_star", tmp_path, **options)
    origin = published.ORIGINS["fcn_alex_star"]
    known = "sha1:" + hashlib.sha1(content).hexdigest()
    own = dataclasses.replace(origin, initial=dataclasses.replace(origin.initial, checksum=known))
    monkeypatch.setitem(published.ORIGINS, "fcn_alex_star", own)
    output = fetching.fetch("fcn_alex_star", tmp_path, **options)
    assert output.name == "fcn_alex_star_imagenet.safetensors"
    said = capsys.readouterr().out
    assert "never published" in said and f"train fcn_alex_star with\n  {origin.command}" in said
    assert f"--initial=runs/weights/{output.name}" in origin.command
    parameters, record = store.load(output)
    assert record["partial"] and "fc7" in parameters and "score_fr" not in parameters


def test_the_launch_names_what_could_not_be_had_and_goes_on(refuse, tmp_path):
    flags = [f"--workdir={tmp_path}", "--address=http://127.0.0.1:9/none"]
    text = refuse("fetch_weights", "--networks=fcn_vgg,fr_vgg_07", *flags, lines=20)
    assert "fcn8s-heavy-pascal.caffemodel could not be fetched" in text
    assert "faster_rcnn_models.tgz could not be fetched" in text


def test_the_launch_needs_known_names(refuse):
    assert refuse("fetch_weights").startswith("--networks: unknown nothing; known: fcn_alex, ")
    assert "unknown vgg; known" in refuse("fetch_weights", "--networks=vgg")


def test_every_network_has_an_origin():
    assert {*published.ORIGINS, *networks.BLACK_BOX} == networks.ENTRIES.keys()
    table = fetching.table()
    assert table.count("\n") == 2 + len(published.ORIGINS)
    assert table.count("never published; ImageNet's") == 2
    readme = pathlib.Path(__file__).resolve().parents[2] / "README.md"
    assert table in readme.read_text()
