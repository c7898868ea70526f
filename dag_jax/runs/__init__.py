"""A run: the folder that it writes to, its attacks and their scores, kept so that none is lost."""

from dag_jax.runs.exporting import export

__all__ = ["export"]
