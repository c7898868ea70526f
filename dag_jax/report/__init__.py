"""What people look at: pictures, tables, plots and the page of a run."""

from dag_jax.report.html import write as write
