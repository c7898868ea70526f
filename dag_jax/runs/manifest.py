"""The manifest of a folder: what its results are of, so that no others are mixed with them.

Use it through `rundir`, which describes the whole folder.
"""

import json

from dag_jax import files
from dag_jax.errors import DamagedError, UserError

MANIFEST = "manifest.json"
FAILED = "failed"  # the folder of `failures`, which may be there first
_MOST_NAMED = 5  # differing settings in one message


def claim(workdir, manifest: dict, *, accept_version: bool = False) -> files.epath.Path:
    """Make a run's folder and write its manifest, or check that the one there is the same.

    Args:
      workdir: folder of the run.
      manifest: JSON values of everything that changes the results. An entry "provenance" holds the
        versions and devices, from `provenance.environment`.
      accept_version: go on if nothing but the provenance differs. The manifest then stays as it
        was, but this version is added to its list "accepted", once.

    Returns:
      The folder.

    Raises:
      UserError: where the folder holds a run with other settings or of a version that was not
        accepted, or other files, or is in a bucket that no installed package can open.
      DamagedError: where the manifest there is damaged.
      StorageError: where it cannot be read or written.
    """
    workdir = files.open_folder(workdir)
    path = workdir / MANIFEST
    manifest = json.loads(json.dumps(manifest))  # as a reader will see it
    # The listing first: another process may write its manifest between two looks.
    other_files = _others_in(workdir)
    if not files.exists(path):
        if other_files:
            raise UserError(f"{workdir} is not empty and holds no run of this launch")
        files.make_folder(workdir)
        files.write_json(path, manifest)
    stored = load_manifest(workdir)
    check_same(workdir, _settings(manifest), _settings(stored))
    now, then = (dict(_leaves(content.get("provenance", {}))) for content in (manifest, stored))
    known = stored.get("accepted", [])
    if now not in [then, *(_changed(then, change) for change in known)]:
        if not accept_version:
            raise UserError(
                f"{workdir} holds results of another version ({_differences(now, then)}); nothing "
                "was changed there. --accept_version goes on with this one, and the table says "
                "so; else give another --workdir"
            )
        change = {"then": _without(then, now), "now": _without(now, then)}
        files.write_json(path, stored | {"accepted": [*known, change]})
    return workdir


def may_become(workdir, about: dict) -> bool:
    """Return whether a folder is empty, or its manifest has the entries `about`."""
    if not files.exists(workdir / MANIFEST):
        return not _others_in(workdir)
    stored = load_manifest(workdir)
    return all(stored.get(key) == value for key, value in json.loads(json.dumps(about)).items())


def _others_in(workdir):
    """Return the names in a folder, without notes of failures and half-written files."""
    names = files.names_in(workdir)
    return [name for name in names if name != FAILED and not files.TEMPORARY.fullmatch(name)]


def accepted(folder) -> list[dict]:
    """Return the versions that `claim` accepted, as [{"then": {name: value}, "now": {...}}].

    A name is a path, as in "versions.jax". Values that did not change are left out.
    """
    return load_manifest(files.open_folder(folder)).get("accepted", [])


def digest_of(manifest: dict) -> str:
    """Return the SHA-256 of a manifest's settings; versions are no part of it."""
    return files.sha256(files.canonical_json(_settings(manifest), allow_nan=True))


def load_manifest(folder, keys=()) -> dict:
    """Return the manifest of a folder, which must have these keys.

    Raises:
      MissingError, DamagedError, StorageError: naming the file.
    """
    try:
        return files.load_json(folder / MANIFEST, digest=True, keys=keys)
    except DamagedError as error:  # nothing makes it anew
        remedy = "Put it back as it was, or give another --workdir"
        raise DamagedError(error.path, error.reason, remedy) from error


def check_same(path, manifest: dict, stored: dict) -> None:
    """Raise UserError where the manifest `stored` in a file or folder differs from `manifest`."""
    now, then = dict(_leaves(json.loads(json.dumps(manifest)))), dict(_leaves(stored))
    if now != then:
        raise UserError(
            f"{path} holds results of a run with other settings ({_differences(now, then)}); "
            "nothing was changed there. Give another --workdir, or remove the folder"
        )


def _settings(manifest):
    return {key: manifest[key] for key in manifest if key not in ("provenance", "accepted")}


def _without(leaves, other_leaves):
    """Return the leaves that `other_leaves` lack, or hold another value of."""
    return {name: leaves[name] for name in leaves if other_leaves.get(name, ...) != leaves[name]}


def _changed(then, change):
    """Return the leaves of an accepted version: `then`, with what changed."""
    return _without(then, change["then"]) | change["now"]


def _differences(now, then) -> str:
    """Return the differing leaves: 'margin: now 3, there nothing; seed: now 1, there 0'."""

    def text(leaves, name):
        return f"{json.dumps(leaves[name]):.60}" if name in leaves else "nothing"

    changes = [
        f"{name}: now {text(now, name)}, there {text(then, name)}"
        for name in sorted(_without(now, then) | _without(then, now))
    ]
    more = [f"and {len(changes) - _MOST_NAMED} more"] if len(changes) > _MOST_NAMED else []
    return "; ".join(changes[:_MOST_NAMED] + more)


def _leaves(value, name=""):
    """Yield ('a.b', leaf) of nested dicts and lists."""
    for key, leaf in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(leaf, dict | list) and leaf:
            yield from _leaves(leaf, f"{name}{key}.")
        else:
            yield f"{name}{key}", leaf


def folders_in(workdir, name) -> set[str]:
    """Return the names of a run's folders that have a file `name`; an empty set without a run."""
    workdir = files.open_folder(workdir)
    return {folder for folder in files.names_in(workdir) if files.exists(workdir / folder / name)}
