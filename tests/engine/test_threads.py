import concurrent.futures

import jax
import numpy as np

from dag_jax.engine.threads import bound


def settings(*more):
    return (jax.config.jax_default_matmul_precision, np.geterr()["divide"], *more)


def test_a_function_runs_elsewhere_as_it_would_run_here_and_now():
    plain = settings(1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with jax.default_matmul_precision("highest"), np.errstate(divide="raise"):
            here = bound(settings)
        assert pool.submit(here, 1).result() == ("highest", "raise", 1)
        assert pool.submit(settings, 1).result() == settings(1) == plain
