import pytest

from experiments.measure import precision


@pytest.mark.slow
def test_each_precision_has_a_row_of_the_same_images(plan, mesh):
    model, examples = plan.subject.model, plan.subject.examples
    both = {"float32": model, "bfloat16": model}
    options = {"slots": 1, "mesh": mesh, "seed": 0}
    whole, half = precision.measure(both, examples, plan.method, **options)
    assert whole["case"] == "Linear float32, 5 images" and whole["fooled_float"] > 0
    assert whole["orig"] > whole["advr"] and whole["steps"] > 1
    assert whole["seconds"] > 0 and half["steps_apart"] == 0
    same = {name: half[name] for name in ("orig", "advr", "steps", "perceptibility")}
    assert same.items() <= whole.items()
