"""The help of flags that launches share."""

from experiments.common import options


def test_help_speaks_of_the_networks_that_a_launch_attacks():
    assert options.help_of("max_steps").endswith("Default: 200 for FCNs, 150 for detectors.")
    assert options.help_of("max_steps", (False,)).endswith("Default: 200.")
    assert options.help_of("margin", (True,)).endswith("Default: 3.")
    assert options.help_of("split", (True,)).endswith("Default: voc07_test.")
    assert "seg11valid" in options.help_of("split", (True,))  # what scenes have
