"""Published files, from the first address that has them whole and with the right checksum."""

import hashlib
import http.client
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from dag_jax import archives, files
from dag_jax.errors import DamagedError, MissingError, StorageError, UserError, reading, writing
from dag_jax.progress import progress

_SECONDS = 60  # without a byte, after which a server counts as gone
_SLOWEST = 1000  # bytes a second over such a time, with which it counts as gone, too
_BLOCK = 1 << 20
_HEAD = 200  # bytes by which a web page is known
_MOST = 1 << 30  # bytes of a file in an archive; VGG-16's detectors have half of that
_LARGEST = 1 << 32  # bytes of a download; archives of several networks have 1.5 GB
BY_HAND = "by hand"  # the address of a file that was put where it is by somebody


def get(release, folder, *, addresses=()) -> dict:
    """Get a published file; one that is there already is kept.

    Where an address fails, a line on stderr says why, and the next one is tried. What is returned
    is also written beside the file, as <name>.json; a file without a published checksum must match
    the one in there when it is looked at again.

    Args:
      release: `published.Published`.
      folder: where to put it.
      addresses: to be tried instead of the published ones; one that ends with "/" is a folder.

    Returns:
      {"address": where it came from, or `BY_HAND`; "bytes"; "file_checksum": "sha256:...";
      "published": the checksum that it was compared with, or None}.

    Raises:
      UserError: where every address fails, each with its reason; where the file that is there is
        another one.
    """
    path = pathlib.Path(folder) / release.name
    if path.exists():
        return _kept(release, path)
    reasons = []
    for address in addresses or release.addresses:
        if address.endswith("/"):
            address += urllib.parse.quote(release.name)
        try:
            last = download(address, path, checksum=release.checksum, size=release.size)
        except StorageError:
            raise
        except (UserError, OSError) as error:
            reasons.append(_reason(address, error))
            _say(reasons[-1])
        else:
            return _record(release, path, address, plainly=last.startswith("http:"))
    raise UserError(
        f"{release.name} could not be fetched from any of {len(reasons)} addresses:\n  "
        + "\n  ".join(reasons)
    )


def _reason(address, error):
    if isinstance(error, UserError):
        return str(error)
    reason = getattr(error, "reason", None) or str(error) or "no reason given"
    return f"{address}: {type(error).__name__}: {reason}"


def _say(text):
    print(text, file=sys.stderr)


def _record(release, path, address, *, plainly=False):
    """Write and return the record of a file; warn on stderr where no checksum vouches for it."""
    with reading(path):
        size = path.stat().st_size
    record = {
        "address": address,
        "bytes": size,
        "file_checksum": checksum_of(path, "sha256:"),
        "published": release.checksum,
    }
    files.write_json(_record_of(path), record)
    if not release.checksum:
        source = address if address == BY_HAND else f"from {address}"
        source += ", over plain http, which anybody on the way can change" * plainly
        _say(
            f"WARNING: no checksum of {release.name} was ever published, so nothing tells whether "
            f"this is the authors' file. It came {source}: {size} bytes, "
            f"{record['file_checksum']}, which {_record_of(path)} keeps"
        )
    return record


def _record_of(path):
    return path.with_name(path.name + ".json")


def _kept(release, path):
    if release.checksum:
        actual = checksum_of(path, release.checksum)
        if not actual.startswith(release.checksum):
            raise UserError(f"{path} has {actual}, published is {release.checksum}; remove it")
    try:
        record = files.load_json(_record_of(path), digest=True)
    except MissingError:
        return _record(release, path, BY_HAND)
    if not release.checksum:
        actual, then = checksum_of(path, "sha256:"), record.get("file_checksum")
        if actual != then:
            raise UserError(
                f"{path} has {actual}, and what came from {record.get('address')} had "
                f"{then}; remove it, or {_record_of(path)} if that is right"
            )
    return record


def discard(release, folder) -> bool:
    """Remove a useless file that was downloaded and has no published checksum.

    Returns:
      Whether it was removed. A file with its published checksum, or put there by hand, stays.
    """
    path = pathlib.Path(folder) / release.name
    try:
        record = files.load_json(_record_of(path), digest=True)
    except (MissingError, DamagedError):
        return False
    useless = not release.checksum and record.get("address", BY_HAND) != BY_HAND
    if useless:
        files.remove(path)
        files.remove(_record_of(path))
    return useless


def download(address: str, path, *, checksum=None, size=None) -> str:
    """Download a file; what an earlier call left in <path>.part is not fetched again.

    Args:
      address: http or https.
      path: the file, which is there only when it is whole.
      checksum: "sha256:...", "sha1:..." or "md5:...", the first digits at least, that it has to
        have, or None.
      size: bytes that it has to have, or None.

    Returns:
      The address that the last redirection led to.

    Raises:
      UserError: where the server has no such file, gives a web page instead, or the file has
        another checksum or size.
      OSError: where the server cannot be reached, the connection breaks, or nearly nothing comes.

    A MiB is in memory at a time. At most 4 GiB are fetched, and no more than `size`.
    """
    try:
        return _download(address, path, checksum=checksum, size=size)
    except http.client.HTTPException as error:
        raise ConnectionError(f"no answer of HTTP: {error!r:.200}") from error


def _download(address, path, *, checksum, size):
    path = pathlib.Path(path)
    files.make_folder(path.parent)
    part = path.with_name(path.name + ".part")
    note = path.with_name(path.name + ".part.json")  # of what file it is a part
    unfinished = _left(part, note, address)
    start = part.stat().st_size if unfinished else 0

    def anew():
        files.remove(part)
        files.remove(note)
        return _download(address, path, checksum=checksum, size=size)

    try:
        response = urllib.request.urlopen(_request(address, unfinished, start), timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        if error.code == 416 and unfinished:  # nothing is left to fetch
            return anew()
        reason = " ".join(str(error.reason).split())
        raise UserError(f"{address} answers {error.code} {reason:.200}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"{address} is no address, or leads to none: {error!r:.200}") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{address} answers with a web page, not with the file")
        length = response.headers.get("Content-Length", "")
        total = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        if response.status == 206:
            if not unfinished:
                raise UserError(f"{address} answers with a part of the file, asked for all of it")
            if not _continues(response, unfinished, start):
                response.close()
                return anew()
            total = unfinished["total"]
        else:
            start = 0
        if None not in (size, total) and total != size:
            raise UserError(f"{address}: the file has {total} bytes, published has {size}")
        if (most := total or size or _LARGEST) > _LARGEST:
            raise UserError(f"{address}: the file has {total} bytes, more than any of weights")
        if not start:
            files.remove(note)
            if _version(response) and total:
                content = {"address": address, "version": _version(response), "total": total}
                files.write_json(note, content)
        bar = progress(total=total, initial=start, desc=path.name, unit="B", unit_scale=True)
        with writing(part):
            file = open(part, "ab" if start else "wb")
        with bar, file:
            for block in _blocks(response):
                if not file.tell() and re.match(rb"\s*<(!doctype )?html", block[:_HEAD].lower()):
                    files.remove(part)
                    files.remove(note)
                    raise UserError(f"{address} answers with a web page, not with the file")
                if file.tell() + len(block) > most:
                    files.remove(part)
                    files.remove(note)
                    raise UserError(f"{address} sends more than the {most} bytes of the file")
                with writing(part):
                    file.write(block)
                bar.update(len(block))
        last = response.geturl()
    received = part.stat().st_size
    if total is not None and received != total:
        raise ConnectionError(f"broke off after {received} of {total} bytes")
    problem = ""
    if size is not None and received != size:
        problem = f"{received} bytes, published has {size}"
    elif checksum and not (actual := checksum_of(part, checksum)).startswith(checksum):
        problem = f"{actual}, published is {checksum}"
    files.remove(note)
    if problem:
        files.remove(part)
        raise UserError(f"{address}: the file has {problem}")
    with writing(path):
        part.replace(path)
    return last


def _blocks(response):
    """Yield what comes, the first `_HEAD` bytes at once; ConnectionError where it is too slow."""
    began, received, head = time.monotonic(), 0, b""
    try:
        while block := response.read1(_BLOCK):
            received += len(block)
            if head is not None and len(head := head + block) >= _HEAD:
                block, head = head, None
            if head is None:
                yield block
            seconds = time.monotonic() - began
            if seconds > _SECONDS:
                if received < _SLOWEST * seconds:
                    raise ConnectionError(f"only {received} bytes came in {seconds:.0f} s")
                began, received = time.monotonic(), 0
        if head:
            yield head
    except ValueError as error:  # Python takes a piece's length to be below 0
        raise ConnectionError(f"no answer of HTTP: {error}") from error


def _request(address, unfinished, start):
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            f"{address} is no address of http or https; a file that is here is converted by "
            "experiments.convert_weights"
        )
    request = urllib.request.Request(address, headers={"User-Agent": "dag-jax"})
    if unfinished:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", unfinished["version"])  # else the whole file comes
    return request


def _left(part, note, address):
    """Return the note on the part that an earlier call left; None where it cannot be continued."""
    try:
        unfinished = files.load_json(note, digest=True)
    except (MissingError, DamagedError):
        return None
    kinds = {"address": str, "version": str, "total": int}
    whole = all(isinstance(unfinished.get(name), kind) for name, kind in kinds.items())
    # Another address may have another file under the same version.
    return unfinished if whole and part.exists() and unfinished["address"] == address else None


def _version(response):
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    # A weak tag does not promise the same bytes.
    return None if version and version.startswith("W/") else version


def _continues(response, unfinished, start):
    """Return whether an answer 206 continues the `unfinished` file from byte `start`."""
    expected_range = f"bytes {start}-{unfinished['total'] - 1}/{unfinished['total']}"
    is_same_version = _version(response) in (None, unfinished["version"])
    return is_same_version and response.headers.get("Content-Range", "").strip() == expected_range


def checksum_of(path, like: str) -> str:
    """Return the checksum of a file, of the same kind as `like`, such as "sha256:..."."""
    kind = like.partition(":")[0]
    with reading(path), open(path, "rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def unpack(archive, members, folder) -> list[pathlib.Path]:
    """Take files, each of at most a GiB and within `archives`' bounds, out of an archive.

    Args:
      archive: a zip, or a tar that may be compressed.
      members: {end of the name of each file: its checksum, or None}.
      folder: where to put them, each under its own last name.

    Returns:
      The files.

    Raises:
      UserError: where the archive is damaged, has not exactly one such file, or has another one.
    """
    folder = pathlib.Path(folder)
    files.make_folder(folder)
    entries, targets = list(archives.entries(archive)), {}
    for member, checksum in members.items():
        matches = [entry for entry in entries if f"/{entry.name}".endswith(f"/{member}")]
        if len(matches) != 1:
            raise UserError(f"{archive} has {len(matches)} files named {member}")
        if matches[0].size > _MOST:
            raise UserError(f"{member} of {archive} has more than {_MOST} bytes")
        targets[matches[0].name] = folder / pathlib.PurePosixPath(member).name, checksum
    for entry in archives.entries(archive):
        if entry.name in targets:
            target, checksum = targets[entry.name]
            with files.replacing(target) as file:
                for piece in entry.pieces():
                    file.write(piece)
            if checksum and (actual := checksum_of(target, checksum)) != checksum:
                raise UserError(f"{target} has {actual}, published is {checksum}")
    return [target for target, _ in targets.values()]
