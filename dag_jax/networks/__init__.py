"""The networks: `load` one by name, give its `score_fn` to the engine, `predict` with it."""

from dag_jax.networks.zoo import (
    BLACK_BOX,
    NAMES,
    PRECISIONS,
    Network,
    bucket,
    bucket_score_fn,
    build,
    load,
    predict,
    propose,
    score_fn,
    unnamed,
)

__all__ = [
    "BLACK_BOX",
    "NAMES",
    "PRECISIONS",
    "Network",
    "bucket",
    "bucket_score_fn",
    "build",
    "load",
    "predict",
    "propose",
    "score_fn",
    "unnamed",
]
