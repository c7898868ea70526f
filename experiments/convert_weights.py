r"""Turn published weights (.caffemodel, .pth) into a checkpoint that `networks.load` reads.

    python -m experiments.convert_weights --network=fcn_vgg --source=fcn8s-heavy-pascal.caffemodel
    python -m experiments.convert_weights --network=fr_vgg_0712 \
        --source=proposal_final,detection_final --output=weights/fr_vgg_0712.safetensors

The checkpoint's record holds the sources' SHA-256 and the layout they were read as. Afterwards

    networks.load("fcn_vgg", checkpoint="fcn_vgg.safetensors")

is the published network. An ImageNet classifier (VGG-16 or CaffeNet and ZF of Caffe, VGG-16 of
torchvision) gives the layers that training starts from: `experiments.train --initial`. Converting
VGG-16 takes 2 GB of memory and half a minute on one core.

    python -m experiments.convert_weights --list --source=fcn8s-heavy-pascal.caffemodel

prints what is in a file, safetensors too, and writes nothing: each tensor's name, shape, dtype and
the SHA-256 of its bytes, and the file's own. Floats of Caffe and of torch are float32 there, as in
a conversion.
"""

from absl import app, flags

from dag_jax import networks
from dag_jax.networks import conversion, zoo
from dag_jax.weights import layouts
from experiments.common import console, options

FLAGS = flags.FLAGS
flags.DEFINE_enum("network", None, list(networks.ENTRIES), "Which network the weights are of.")
options.strings("source", None, "The file, or the two files of the MATLAB release.")
options.string("output", None, "The file to write. Default: <network>.safetensors.")
flags.DEFINE_enum("layout", None, list(layouts.LAYOUTS), "Default: told by the layers' names.")
flags.DEFINE_bool(
    "offsets_folded", True, "Whether bbox_pred gives offsets that are not normalised."
)
options.string(
    "part",
    None,
    "The names before the network's in a checkpoint that holds several, such as ema.module. "
    "Default: told by the layers' names.",
)
flags.DEFINE_bool("miniature", False, "The small network, or the full-size one.")
flags.DEFINE_bool("list", False, "Only print what is in the files of --source, of any network.")


def main(argv):
    """Convert the files that the flags name, or list what is in them."""
    console.start(argv)
    if FLAGS.list:
        if not FLAGS.source:
            raise app.UsageError("--list needs --source")
        print(conversion.list_files(FLAGS.source))
        return
    if not FLAGS.network or not FLAGS.source:
        raise app.UsageError("--network and --source are needed")
    output = FLAGS.output or f"{FLAGS.network}.safetensors"
    names = [name for name in ("layout", "offsets_folded", "part") if FLAGS[name].present]
    chosen = {name: FLAGS[name].value for name in names}
    record = zoo.convert(FLAGS.network, FLAGS.source, output, miniature=FLAGS.miniature, **chosen)
    print(conversion.describe(output, record))


if __name__ == "__main__":
    console.run(main)
