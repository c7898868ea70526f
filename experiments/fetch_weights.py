"""Download published weights, check them and convert them.

    python -m experiments.fetch_weights --networks=fcn_alex,fcn_vgg
    python -m experiments.fetch_weights --list        # what each network is, its licence, its files

Checkpoints go to --workdir, runs/weights, as <network>.safetensors; the files as they are published
to downloads/ there, each with a <file>.json of its address and SHA-256. Every known address is
tried in turn, some of them ten years old, and each one that fails is said in a line. A download
goes on where it broke off. Where every address fails, get the file in another way and run
`python -m experiments.convert_weights`, which does the rest.
"""

import re

from absl import flags

from dag_jax.errors import UserError
from dag_jax.networks import fetching
from dag_jax.weights import published
from experiments.common import console, options


def check_addresses(texts):
    """Raise UserError for a text that is no address."""
    for text in texts:
        if not re.match(r"https?://[^/\s]+/", text):
            raise UserError(f"{text!r} is no address of http or https")


FLAGS = flags.FLAGS
options.strings("networks", None, "Which networks to fetch.")
flags.DEFINE_bool(
    "list",
    False,
    "Print of each network what it is, its paper, licence, published score, classes and files.",
)
options.define(__name__, "workdir", workdir="runs/weights")
options.strings(
    "address",
    None,
    "Addresses instead of the published ones: of a file, or of a folder, with / at the end.",
    check_addresses,
)
flags.DEFINE_bool("miniature", False, "The small networks, of files of your own: for tests.")


def main(argv):
    """Fetch what the flags name."""
    console.start(argv)
    if FLAGS.list:
        print(fetching.listing(), end="")
        return
    console.check_names("networks", FLAGS.networks or [], published.ORIGINS)
    failures = []
    for name in FLAGS.networks:
        try:
            fetching.fetch(
                name,
                FLAGS.workdir,
                addresses=FLAGS.address or [],
                miniature=FLAGS.miniature,
            )
        except UserError as error:  # the next one may still be had
            failures.append(str(error))
    if failures:
        raise UserError("\n\n".join(failures))


if __name__ == "__main__":
    console.run(main)
