"""What results depend on besides the settings of a launch: versions, the code, the device."""

import ast
import functools
import hashlib
import pathlib
import platform
from importlib import metadata

import jax

import dag_jax

# Files and folders of the package that compute no result; the digest is of everything else, so that
# a new module counts from the start.
LEFT_OUT = (
    "__init__.py",  # names
    "errors.py",
    "files.py",  # keeps what it is given, and compares it with digests
    "progress.py",
    "report",  # pictures and tables of results
    "engine/audit.py",  # judges attacks, as the four others do; a run's has a digest of its own
    "engine/planted.py",
    "runs/audit.py",
    "runs/audit_checks.py",
    "runs/audit_scores.py",
    "runs/claims.py",  # judges scores that are there
    "runs/__init__.py",
    "runs/exporting.py",
    "runs/failures.py",
    "runs/layout.py",
    "runs/manifest.py",
    "runs/provenance.py",
    "weights/downloads.py",  # a checkpoint has a digest of its own
    "weights/published.py",
)


def environment() -> dict:
    """Return what results depend on besides the settings, as JSON values.

    Returns:
      {"versions": {package: version}, "code": `code_digest`, "device": its kind, "platform",
      "matmul_precision"}.
    """
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    versions |= {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    versions["numpy"] = metadata.version("numpy")
    device = jax.local_devices()[0]
    return {
        "versions": versions,
        "code": code_digest(),
        "device": device.device_kind,
        "platform": device.platform,
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
    }


@functools.cache
def code_digest() -> str:
    """Return the start of the SHA-256 of the code that computes results.

    Comments, docstrings, the layout of the text and the texts of errors are not part of it.
    """
    return digest_of(pathlib.Path(dag_jax.__file__).parent)


def digest_of(package) -> str:
    """Return the `code_digest` of a folder of the package.

    Args:
      package: its path.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if not any(name.is_relative_to(part) for part in LEFT_OUT):
            tree = ast.parse(path.read_bytes())
            _strip(tree)
            digest.update(f"{name.as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]


def _strip(parent) -> None:
    """Remove the statements below a node, or the parts of them, that change no result."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        statements = getattr(parent, field, None)
        if not isinstance(statements, list):
            continue
        statements[:] = [statement for statement in statements if not _is_text(statement)]
        for statement in statements:
            _strip(statement)
            if isinstance(statement, ast.Raise) and isinstance(statement.exc, ast.Call):
                statement.exc = statement.exc.func  # the kind of error, without its words


def _is_text(statement):
    """Return whether this is a docstring, or any other constant that stands alone."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
