"""What people look at: pictures, tables, plots and the page of a run.

```python
page = dag_jax.report.write("runs/mine")  # report.html, which opens from disk
figure = dag_jax.report.show(attack, image, model)  # one attack, in a notebook
```
"""

from dag_jax.report.html import write
from dag_jax.report.pictures import show

__all__ = ["show", "write"]
