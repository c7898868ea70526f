"""Every command of a launch in the README and in the documentation runs as it stands, made short.

What `desk.SHORT` has no flags for fails here, and so does what finds no file of its reader's. The
commands of `make` are those of its recipes; recipes without a launch are what `.ci/run` does.
"""

import pytest

from tests.experiments import desk, small

# The others, two processes that meet at an address, are in test_table1.
COMMANDS = [command for command in desk.commands() if "coordinator" not in command.values]


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: f"{command.launch}-{command.source}"
)
def test_a_command_of_the_documentation_runs(command, documented):
    if "distributed" in command.values:
        pytest.skip("--distributed alone is for a TPU slice, Slurm or Kubernetes")
    workdir, printed = documented(command)
    if "list" in command.values:
        assert printed
    else:
        assert command.workdir in printed and small.everything(workdir)
