"""Downloads from a server on this machine: whole, in parts, damaged, gone."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import re
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest

from dag_jax import files as project_files
from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.networks import fetching
from dag_jax.weights import downloads, published, store


class Files(http.server.BaseHTTPRequestHandler):
    """Serve `files` by name, and ranges of them; `odd` names do what no good server does."""

    def __init__(self, *arguments, files, requests, odd):
        self.files, self.requests, self.odd = files, requests, odd
        super().__init__(*arguments)

    def do_GET(self):
        content, odd = self.files.get(self.path), self.odd.get(self.path, {})
        self.requests.append((self.path, self.headers.get("Range")))
        if "location" in odd:
            self.send_response(302)
            self.send_header("Location", odd["location"])
            self.end_headers()
            return
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start, status = 0, 200
        if "Range" in self.headers and self.headers.get("If-Range") == tag:
            start, status = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")), 206
        if start >= len(content) or odd.get("never"):
            self.send_error(416)
            return
        self.send_response(status)
        self.send_header("ETag", tag)
        kind = "text/html" if self.path.endswith("html") else "application/octet-stream"
        self.send_header("Content-Type", kind)
        for number in range(200 * odd.get("silly", False)):
            self.send_header(f"X-{number}", "1")
        if not odd.get("endless"):
            self.send_header("Content-Length", odd.get("length", str(len(content) - start)))
        if "chunk" in odd:
            self.send_header("Transfer-Encoding", "chunked")
            content = odd["chunk"]
        if status == 206:
            end = f"{start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", odd.get("range", f"bytes {end}"))
        self.end_headers()
        if "slow" in odd:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for byte in content[start:]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(odd["slow"])
            return
        self.wfile.write(content[start:][: odd.get("most")])
        if "silent" in odd:
            self.wfile.flush()
            odd["silent"].wait(5)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server: its address, what it serves, what it was asked for, where it is odd."""
    files, requests, odd = {}, [], {}
    handler = functools.partial(Files, files=files, requests=requests, odd=odd)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", files, requests, odd
        running.shutdown()
        thread.join()


def test_a_download_goes_on_where_it_broke_off(server, tmp_path, rng):
    address, files, requests, odd = server
    files["/a.bin"] = content = rng.bytes(3_000_000)
    odd["/a.bin"] = {"most": 1_000_000}
    path = tmp_path / "new" / "a.bin"
    with pytest.raises(ConnectionError, match="broke off after 1000000 of 3000000 bytes"):
        downloads.download(f"{address}/a.bin", path)
    assert not path.exists() and 0 < (tmp_path / "new" / "a.bin.part").stat().st_size <= 1_000_000
    odd.clear()
    downloads.download(
        f"{address}/a.bin", path, checksum="sha1:" + hashlib.sha1(content).hexdigest()
    )
    assert path.read_bytes() == content
    assert [part for _, part in requests] == [None, "bytes=1000000-"]
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


def left_part(server, path, rng):
    """Leave 1,000 bytes of a file of 3,000 in path.part; return the file."""
    address, files, requests, odd = server
    files["/a.bin"], odd["/a.bin"] = rng.bytes(3000), {"most": 1000}
    with contextlib.suppress(ConnectionError):
        downloads.download(f"{address}/a.bin", path)
    assert path.with_name("a.bin.part").stat().st_size == 1000
    requests.clear(), odd.clear()
    return files["/a.bin"]


def test_a_part_of_another_version_is_not_gone_on_with(server, tmp_path, rng):
    address, files, _, _ = server
    left_part(server, tmp_path / "a.bin", rng)
    files["/a.bin"] = content = rng.bytes(4000)
    downloads.download(f"{address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == content


@pytest.mark.parametrize(
    "answer",
    ["bytes 0-2999/3000", "bytes 999-2999/3000", "bytes 1000-2999/4000", "bytes 1000-1999/3000"]
    + ["bytes 1000-2999/*", "nonsense", ""],
)
def test_a_rest_that_is_not_the_one_asked_for_is_not_appended(server, tmp_path, rng, answer):
    address, _, requests, odd = server
    content = left_part(server, tmp_path / "a.bin", rng)
    odd["/a.bin"] = {"range": answer}
    downloads.download(f"{address}/a.bin", tmp_path / "a.bin")  # no checksum would tell
    assert (tmp_path / "a.bin").read_bytes() == content
    assert [part for _, part in requests] == ["bytes=1000-", None]


def test_a_part_of_another_address_is_not_gone_on_with(server, tmp_path, rng):
    address, files, requests, _ = server
    files["/b.bin"] = left_part(server, tmp_path / "a.bin", rng)
    downloads.download(f"{address}/b.bin", tmp_path / "a.bin")
    assert requests == [("/b.bin", None)]


def test_a_damaged_note_is_not_gone_on_with(server, tmp_path, rng):
    content = left_part(server, tmp_path / "a.bin", rng)
    (tmp_path / "a.bin.part.json").write_text('{"address": 3')
    downloads.download(f"{server[0]}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == content and server[2] == [("/a.bin", None)]


def test_a_whole_part_is_fetched_anew(server, tmp_path, rng):
    address, files, requests, odd = server
    content = left_part(server, tmp_path / "a.bin", rng)
    (tmp_path / "a.bin.part").write_bytes(content)
    downloads.download(f"{address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == content
    assert [part for _, part in requests] == ["bytes=3000-", None]
    odd["/a.bin"] = {"never": True}
    with pytest.raises(ValueError, match="answers 416"):
        downloads.download(f"{address}/a.bin", tmp_path / "b.bin")


def test_what_is_not_the_file_is_refused(server, tmp_path):
    address, files, _, odd = server
    files |= {"/a.bin": b"damaged", "/page.html": b"sign in"}
    files["/page.bin"] = b"\n <!DOCTYPE html><html>sign in</html>"
    odd |= {"/a.bin": {"endless": True}, "/loop": {"location": f"{address}/loop"}}
    odd["/away"] = {"location": "file:///etc/hostname"}
    for name, options, text in [
        ("a.bin", {"checksum": "md5:0123"}, "has md5:[0-9a-f]{32}, published is md5:0123"),
        ("a.bin", {"size": 8}, "has 7 bytes, published has 8"),
        ("page.html", {}, "answers with a web page, not with the file"),
        ("page.bin", {}, "answers with a web page, not with the file"),
        ("b.bin", {}, "answers 404"),
        ("loop", {}, "answers 302"),
        ("away", {}, "answers 302"),
    ]:
        with pytest.raises(UserError, match=text):
            downloads.download(f"{address}/{name}", tmp_path / "a.bin", **options)
    for bad_address in (
        "file:///etc/hostname",
        "ftp://example.org/a",
        "a.bin",
        "http://[1",
        "http://a b/",
    ):
        with pytest.raises(UserError, match="is no address"):
            downloads.download(bad_address, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("odd", "options", "error", "text"),
    [
        ({"length": "9" * 5000}, {"size": 2000}, UserError, "sends more than the 2000 bytes"),
        ({"length": "9" * 15}, {}, UserError, "has 999999999999999 bytes, more than any"),
        ({"endless": True}, {"size": 2000}, UserError, "sends more than the 2000 bytes"),
        ({"length": "-5"}, {"size": 2000}, UserError, "sends more than the 2000 bytes"),
        ({"endless": True, "chunk": b"-5\r\nab"}, {}, ConnectionError, "no answer of HTTP"),
        ({"silly": True}, {}, ConnectionError, "no answer of HTTP: HTTPException"),
    ],
)
def test_lengths_that_cannot_be(server, tmp_path, rng, odd, options, error, text):
    address, files, _, oddities = server
    files["/a.bin"], oddities["/a.bin"] = rng.bytes(3000), odd
    with pytest.raises(error, match=text):
        downloads.download(f"{address}/a.bin", tmp_path / "a.bin", **options)
    assert not (tmp_path / "a.bin").exists()


def test_a_record_that_says_too_little_is_of_no_file(tmp_path):
    release = published.Published("a.bin", ("http://127.0.0.1:9/a.bin",))
    (tmp_path / "a.bin").write_bytes(b"1")
    for content in ({}, {"address": 3}, {"file_checksum": None}):
        project_files.write_json(tmp_path / "a.bin.json", content)
        with pytest.raises(UserError, match="remove it, or .*a.bin.json if that is right"):
            downloads.get(release, tmp_path)
    assert not downloads.discard(release, tmp_path)


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


BAD = ["gone", "nowhere", "page", "short", "wrong", "silent", "slow"]


@pytest.mark.parametrize("bad", [*BAD, "all"])
def test_addresses_are_tried_in_turn(server, tmp_path, rng, capsys, monkeypatch, bad):
    monkeypatch.setattr(downloads, "_SECONDS", 0.2)
    address, files, requests, odd = server
    content, over = rng.bytes(3000), threading.Event()
    files |= {"/good": content, "/short": content, "/wrong": rng.bytes(3000), "/silent": content}
    files["/slow"], odd["/slow"] = content, {"slow": 0.01}
    files["/page"] = b"<html>moved</html>"
    odd |= {"/nowhere": {"location": "http://127.0.0.1:9/none"}, "/short": {"most": 2000}}
    odd["/silent"] = {"most": 0, "silent": over}
    names = BAD if bad == "all" else [bad]
    addresses = tuple(f"{address}/{name}" for name in [*names, "good", "never"])
    release = published.Published("a.bin", addresses, sha256(content))
    record = downloads.get(release, tmp_path)
    over.set()
    reasons = capsys.readouterr().err.splitlines()
    reasons = [line for line in reasons if line.startswith("http")]  # not progress
    texts = {
        "gone": "answers 404 Not Found",
        "nowhere": "ConnectionRefusedError|URLError.*refused",
        "page": "answers with a web page, not with the file",
        "short": "broke off after 2000 of 3000 bytes",
        "wrong": f"the file has sha256:[0-9a-f]+, published is {sha256(content)}",
        "silent": "timed out",
        "slow": r"only \d+ bytes came in 0 s",
    }
    for name, line in zip(names, reasons, strict=True):
        assert line.startswith(f"{address}/{name}") and re.search(texts[name], line)
    assert [path for path, _ in requests] == [f"/{name}" for name in [*names, "good"]]
    assert (tmp_path / "a.bin").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.bin.json"]
    assert record == {
        "address": f"{address}/good",
        "bytes": 3000,
        "file_checksum": sha256(content),
        "published": sha256(content),
    }
    assert downloads.get(release, tmp_path) == record and len(requests) == len(names) + 1


def test_when_every_address_fails_all_are_listed(server, tmp_path, rng):
    address, files, _, odd = server
    files |= {"/wrong": rng.bytes(10), "/short": rng.bytes(10)}
    odd["/short"] = {"most": 5}
    names = ["gone", "wrong", "short"]
    release = published.Published("a.bin", tuple(f"{address}/{n}" for n in names), "md5:0")
    with pytest.raises(UserError) as error:
        downloads.get(release, tmp_path)
    first, *lines = str(error.value).splitlines()
    assert first == "a.bin could not be fetched from any of 3 addresses:"
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(f"  {address}/{name}")
    assert not (tmp_path / "a.bin").exists()


def test_what_nothing_vouches_for_is_said_and_recorded(server, tmp_path, rng, capsys):
    address, files, _, _ = server
    files["/a.bin"] = content = rng.bytes(300)
    release = published.Published("a.bin", (f"{address}/a.bin",))
    record = downloads.get(release, tmp_path)
    message = capsys.readouterr().err
    assert "WARNING: no checksum of a.bin was ever published" in message and "plain http" in message
    assert record["file_checksum"] in message and record["file_checksum"] == sha256(content)
    (tmp_path / "a.bin").write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"and what came from {address}/a.bin had sha256"):
        downloads.get(release, tmp_path)
    (tmp_path / "a.bin.json").unlink()
    assert downloads.get(release, tmp_path)["address"] == downloads.BY_HAND
    assert not downloads.discard(release, tmp_path) and (tmp_path / "a.bin").exists()


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
    members = {"vgg/proposal_final": sha256(names[0].encode()), "vgg/detection_final": None}
    files = downloads.unpack(archive, members, tmp_path / "out")
    assert [file.read_text() for file in files] == names[:2]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "detection_final",
        "proposal_final",
    ]
    with pytest.raises(ValueError, match="has 2 files named proposal_final"):
        downloads.unpack(archive, {"proposal_final": None}, tmp_path / "out")
    with pytest.raises(ValueError, match="has md5:.*, published is md5:0"):
        downloads.unpack(archive, {"zf/proposal_final": "md5:0"}, tmp_path / "out")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:40])
    with pytest.raises(ValueError, match="is not a whole archive"):
        downloads.unpack(archive, members, tmp_path / "out")
    for at, bit in zip(rng.integers(0, len(whole), 200), rng.integers(0, 8, 200), strict=True):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        archive.write_bytes(damaged)
        with contextlib.suppress(UserError):  # not every bit of an archive means anything
            downloads.unpack(archive, members, tmp_path / "out")


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
    first, second = process.stdout.splitlines()
    name = "fcn-alexnet-pascal.caffemodel"
    digest = sha256(path.read_bytes())
    assert first.startswith(f"{name}: ") and "CHECKSUM UNKNOWN" in first and digest in first
    assert second == f"{checkpoint}: fcn_alex, read as caffe_fcn"
    assert f"{address}/gone answers 404" in process.stderr and "WARNING" in process.stderr
    assert (workdir / "downloads" / name).is_file()
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
    with pytest.raises(ValueError, match="bytes, published has 243862418"):
        fetching.fetch("fcn_alex_star", tmp_path, **options)
    origin = published.ORIGINS["fcn_alex_star"]
    known = dataclasses.replace(origin.files[0], checksum=sha256(content), size=len(content))
    changed = dataclasses.replace(origin, files=(known,))
    monkeypatch.setitem(published.ORIGINS, "fcn_alex_star", changed)
    output = fetching.fetch("fcn_alex_star", tmp_path, **options)
    assert output.name == "fcn_alex_star_imagenet.safetensors"
    message = capsys.readouterr().out
    assert (
        "never published" in message and f"train fcn_alex_star with\n  {origin.command}" in message
    )
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


@pytest.mark.parametrize("address", ["nonsense", "file:///etc/hostname", "http://", "http:/a/b"])
def test_the_launch_needs_addresses(refuse, tmp_path, address):
    flags = ("--networks=fcn_vgg", f"--workdir={tmp_path}/run", f"--address={address}")
    assert f"{address!r} is no address of http or https" in refuse("fetch_weights", *flags)
    assert not (tmp_path / "run").exists()


def test_garbage_that_nothing_vouches_for_is_removed(server, tmp_path):
    address, files, _, _ = server
    files["/fcn-alexnet-pascal.caffemodel"] = b"no caffemodel"
    with pytest.raises(UserError, match="removed: the same command fetches it again"):
        fetching.fetch("fcn_alex", tmp_path, addresses=[f"{address}/"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_listing_says_all_of_every_network():
    assert set(networks.NAMES) <= set(published.ORIGINS) <= set(networks.ENTRIES)
    paragraphs = fetching.listing().split("\n\n")
    assert len(paragraphs) == len(networks.ENTRIES)
    for (name, entry), paragraph in zip(networks.ENTRIES.items(), paragraphs, strict=True):
        assert paragraph.startswith(f"{name}: {entry.title}, {entry.task}; {entry.paper}\n")
        assert entry.score in paragraph and f"{len(entry.classes)} (" in paragraph
        origin = published.ORIGINS.get(name)
        if not origin:
            assert "none are published" in paragraph
            continue
        assert origin.licence and origin.licence in paragraph and origin.page in paragraph
        assert ("never published" in paragraph) == bool(origin.command)
        for file in origin.files:
            assert file.name in paragraph and set(file.addresses) <= set(paragraph.split())
            assert (file.checksum or "no checksum was published") in paragraph


def test_the_weights_at_hand_are_the_published_ones(shared):
    for origin in published.ORIGINS.values():
        for file in origin.files:
            path = shared / "weights" / file.name
            if path.exists():
                assert downloads.checksum_of(path, file.checksum).startswith(file.checksum)
                assert file.size in (None, path.stat().st_size)


def test_every_origin_can_be_fetched_and_checked():
    digits = {"sha256": 64, "sha1": 40, "md5": 32}
    for origin in published.ORIGINS.values():
        for file in origin.files:
            assert file.addresses and len(set(file.addresses)) == len(file.addresses)
            for address in file.addresses:
                assert re.match(r"https?://[\w.-]+/", address) and " " not in address
            for checksum in (file.checksum, *file.members.values()):
                kind, _, digest = (checksum or f"md5:{'0' * 32}").partition(":")
                first = re.search("-([0-9a-f]{8})[.]pth$", file.name)  # torchvision's
                least = 8 if first and digest.startswith(first[1]) else digits[kind]
                assert re.fullmatch(f"[0-9a-f]{{{least},{digits[kind]}}}", digest)
