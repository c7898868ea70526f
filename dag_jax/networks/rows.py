"""A function of many rows, a chunk at a time: in bounded memory, and backward only where needed.

A detector's heads score thousands of regions, each alone. All at once they need gigabytes for a
backward pass. In an attack most regions have lost already, and their gradient is zero.

Shapes: `R` rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from dag_jax.errors import UserError
from dag_jax.networks.operations import default_precision


def map_rows(function, shared, rows, *, chunk: int):
    """Return function(shared, rows), computed `chunk` rows at a time.

    The backward pass runs the function again, on the rows whose cotangent is not zero and on no
    others: its cost is theirs, rounded up to whole chunks. Its memory is that of one chunk and of
    `shared`'s gradient.

    Args:
      function: (shared, rows) -> pytree of float arrays of R rows; each row must depend on its own
        alone. It closes over no traced array. It has a first gradient, and no other derivative.
      shared: pytree of float arrays that all rows depend on. A gradient is computed only for those
        of its leaves that are differentiated.
      rows: array of R rows. No gradient passes to it.
      chunk: rows at a time.

    Returns:
      What `function` returns.

    Raises:
      ValueError: where `chunk` is less than 1.
    """
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; it must be at least 1")
    shared, rows = jax.tree.map(jnp.asarray, (shared, rows))  # NumPy's have no traced rows
    if rows.shape[0] <= chunk:
        return function(shared, lax.stop_gradient(rows))
    precision = default_precision()

    def in_precision(shared, rows):  # the backward pass traces it later
        with jax.default_matmul_precision(precision):
            return function(shared, rows)

    return _map_rows(in_precision, chunk, shared, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _map_rows(function, chunk, shared, rows):
    count = rows.shape[0]
    parts = -(-count // chunk)
    rows = jnp.pad(rows, [(0, parts * chunk - count)] + [(0, 0)] * (rows.ndim - 1))
    parts = rows.reshape(parts, chunk, *rows.shape[1:])
    results = lax.map(lambda part: function(shared, part), parts)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], results)


def _forward(function, chunk, shared, rows):
    leaves, structure = jax.tree.flatten(shared)
    values = [leaf.value for leaf in leaves]
    # None says in the tree's structure, which is known while tracing, which leaves are asked for.
    perturbed = [leaf.value if leaf.perturbed else None for leaf in leaves]
    constants = [None if leaf.perturbed else leaf.value for leaf in leaves]
    result = _map_rows(function, chunk, structure.unflatten(values), rows.value)
    return result, (structure.unflatten(perturbed), structure.unflatten(constants), rows.value)


def _backward(function, chunk, residuals, cotangents):
    perturbed, constants, rows = residuals
    count = rows.shape[0]
    cotangents = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf,
        cotangents,
        is_leaf=lambda leaf: isinstance(leaf, SymbolicZero),
    )
    needed = [(leaf != 0).reshape(count, -1).any(axis=1) for leaf in jax.tree.leaves(cotangents)]
    needed = functools.reduce(jnp.logical_or, needed)
    total = needed.sum(dtype=jnp.int32)
    order = jnp.argsort(~needed, stable=True).astype(jnp.int32)  # needed rows to the front
    order = jnp.pad(order, (0, -count % chunk))

    def merged(leaves):
        def leaf_or_constant(leaf, constant):
            return constant if leaf is None else leaf

        return jax.tree.map(leaf_or_constant, leaves, constants, is_leaf=lambda leaf: leaf is None)

    def add(carry):
        part, gradient = carry
        start = part * chunk
        here = lax.dynamic_slice_in_dim(order, start, chunk)
        is_row = jnp.arange(chunk) < total - start

        def seed(leaf):
            mask = is_row.reshape(-1, *[1] * (leaf.ndim - 1))
            return jnp.where(mask, leaf[here], 0)

        _, vjp = jax.vjp(lambda leaves: function(merged(leaves), rows[here]), perturbed)
        (chunk_gradient,) = vjp(jax.tree.map(seed, cotangents))
        return part + 1, jax.tree.map(jnp.add, gradient, chunk_gradient)

    # Counted one by one: XLA on CPU drops a loop whose counter's first stride passes its end.
    parts = (total + (chunk - 1)) // chunk
    start = jnp.int32(0), jax.tree.map(jnp.zeros_like, perturbed)
    gradient = lax.while_loop(lambda carry: carry[0] < parts, add, start)[1]
    return gradient, None


_map_rows.defvjp(_forward, _backward, symbolic_zeros=True)
