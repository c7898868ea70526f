"""A flag that cannot be right is one line, and nothing is written; every flag of every launch."""

import pathlib

import pytest
from absl import flags

import experiments
from experiments.common import console

(FOLDER,) = map(pathlib.Path, experiments.__path__)
LAUNCHES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
# What no flag of such a kind takes, by its parser.
NONSENSE = {
    flags.IntegerParser: ("-1", "1.5", "nan", "many", "", str(10**20), str(10**23)),
    flags.FloatParser: ("-1", "nan", "inf", "-inf", "1e39", "many", ""),
    flags.BooleanParser: ("maybe",),
    flags.EnumParser: ("nothing", ""),
    flags.ListParser: ("", ",", " "),
    flags.ArgumentParser: ("", " "),
}
NONE_IS_MEANT = "sums", "black_boxes"  # of transfer, whose lists may be empty


def nonsense(flag):
    """Return what a flag must refuse."""
    if flag.name in NONE_IS_MEANT:
        return ()
    return next(texts for kind, texts in NONSENSE.items() if isinstance(flag.parser, kind))


@pytest.mark.parametrize("name", LAUNCHES)
def test_no_flag_takes_what_means_nothing(load_launch, name):
    with load_launch(name):
        known = flags.FLAGS.flags_by_module_dict()
        defined = [*known[f"experiments.{name}"], *known[console.__name__]]
        assert len(defined) > 7
        for flag in defined:
            for text in nonsense(flag):
                with pytest.raises(flags.Error) as caught:
                    flags.FLAGS([name, f"--{flag.name}={text}"])
                assert any(
                    line.startswith(f"flag --{flag.name}=")
                    for line in str(caught.value).splitlines()
                ), f"--{flag.name}={text}: {caught.value}"
                flag.unparse()
