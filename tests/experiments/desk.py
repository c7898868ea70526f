"""Commands of the documentation, each made short, and the folder in which they are run.

One folder for all, so that a command finds there what those before it have written.
"""

import functools

import numpy as np
from PIL import Image

from dag_jax import datasets
from dag_jax.networks import zoo
from tests.experiments import pages, small
from tests.experiments.small import SEGMENTER, TWO_STAGE

DENSE = "tests.toy_models:dense"
_IMAGES = f"--image_ids={','.join(small.SCENES)}"
_FEW = "--limit=2", "--max_steps=2", "--slots=1", "--noaudit"
# Flags that make a launch short, in an order in which none needs a later one.
SHORT = {
    "fetch_weights": ("--networks=yolo_fastest_voc",),
    "convert_weights": (),
    "table1": (f"--models={SEGMENTER},{TWO_STAGE}", *_FEW),
    "transfer": ("--black_boxes=", "--sets=10"),
    "convergence": (),
    "proposals": (
        *(f"--models={DENSE}", "--thresholds=0.5,0.7", "--proposals=10,64"),
        *(*small.STEPS, _IMAGES, "--noaudit"),
    ),
    "shapes": (
        *(f"--models={SEGMENTER}", "--shape=square,word", "--word=I", "--class_name=cat"),
        *(f"--split={small.SPLIT}", _IMAGES, "--max_steps=30", "--step_size=3", "--slots=1"),
        "--noaudit",
    ),
    "variants": (
        *(f"--models={SEGMENTER}", "--variants=pgd,release,dag", "--bounded_steps=2"),
        *("--epsilon=3", *small.STEPS, _IMAGES, "--noaudit"),
    ),
    "figure1": (
        *(f"--models={TWO_STAGE},{SEGMENTER}", "--limit=2", "--max_steps=4", "--step_size=2"),
    ),
    "attack_image": (f"--models={SEGMENTER}", "--max_steps=2"),
    "train": (
        *("--network=fcn_alex", "--miniature", "--canvas=64", "--steps=2", "--batch_size=2"),
        *("--splits=seg11valid[:2]", "--test_split=seg11valid[:2]", "--nopublish"),
    ),
    "full_size": (
        *("--images=one.jpg", f"--models={SEGMENTER},{TWO_STAGE}", "--steps=4", "--proposals=64"),
        *("--segmenter_size=64x80", "--detector_size=64x80", "--workdir=runs/full_size"),
    ),
    "benchmark": (
        *("--parts=stream,torch", "--size=64", "--images=3", "--few_images=2", "--max_steps=3"),
        *("--turns=1", "--lanes=1", "--slots=1", "--fcns=fcn_alex", "--batches=1"),
        *("--full_images=0", "--full_steps=1"),
    ),
}
# The same for what reads photographs.
PHOTOGRAPHS = {
    "table1": ("--canvas=128",),
    "train": ("--splits=voc2012_seg_val[:2]", "--test_split=voc2012_seg_val[:2]"),
    "variants": (
        *("--canvas=128", "--split=voc2012_seg_val"),
        "--image_ids=2007_000332,2007_000491",
    ),
    "figure1": ("--canvas=128",),
}


def shortened(command) -> pages.Command:
    """Return a command as it stands, with what makes it short."""
    values, flags = command.values, SHORT[command.launch]
    if command.launch == "train":
        flags = (*flags, f"--workdir={command.workdir}")  # that of the network that was named
    if values.get("dataset") == "voc":
        flags = (*flags, *PHOTOGRAPHS[command.launch])
    if "process" in values and "distributed" not in values:
        flags = (*flags, "--processes=1")  # it would wait for the others
    return command.with_flags(*flags)


@functools.cache
def commands() -> list[pages.Command]:
    """Return the commands of all pages, shortened, none twice, each behind those it needs."""
    shown = sorted(pages.documented(), key=lambda command: list(SHORT).index(command.launch))
    listed: dict = {}
    for command in map(shortened, shown):
        values = command.values | {"workdir": command.workdir}
        listed.setdefault((command.launch, frozenset(values.items())), command)
    return list(listed.values())


def command(launch, workdir=None) -> pages.Command:
    """Return the first command of a launch, or the first that writes there."""
    return next(c for c in commands() if c.launch == launch and workdir in (None, c.workdir))


def needed(command) -> list[pages.Command]:
    """Return the commands that write into the folders which a command names."""
    named = {value for name, value in command.values.items() if name != "workdir"}
    return [other for other in commands() if other.workdir in named and "list" not in other.values]


def needs_shared(command) -> bool:
    """Return whether a command reads real photographs or published weights."""
    fetches = command.launch == "fetch_weights" and "list" not in command.values
    return fetches or "data_dir" in command.values or any(map(needs_shared, needed(command)))


def save_blocks(path) -> None:
    """Save an image of coloured blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(blocks).resize((96, 96)).save(path)


def lay_out(folder, cache, shared) -> None:
    """Put into a folder what readers have of their own.

    Args:
      folder: empty.
      cache: folder of prepared datasets.
      shared: folder of real photographs and weights; where one of them is absent, neither is put.
    """
    (folder / "runs/weights/downloads").mkdir(parents=True)
    scene = datasets.load_examples("scenes", small.SPLIT, cache_dir=cache, limit=1)[0]
    for name in "photo.jpg", "chelsea.png", "runs/chelsea.png":
        Image.fromarray(scene["image"]).save(folder / name)
    for name in "one.jpg", "two.jpg":
        save_blocks(folder / name)
    checkpoint = zoo.CHECKPOINTS / "fcn_alex.safetensors"
    for name in "FILE", "FCN_CHECKPOINT", "runs/weights/fcn_alex_star_imagenet.safetensors":
        (folder / name).symlink_to(checkpoint)
    (folder / "FOLDER_OF_BOTH").symlink_to(zoo.CHECKPOINTS)
    photographs, weights = shared / "voc-mini" / "VOCdevkit", shared / "weights"
    if photographs.is_dir() and weights.is_dir():
        for path in weights.iterdir():
            (folder / "runs/weights/downloads" / path.name).symlink_to(path)
        names = (photographs / "VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
        for devkit in folder / "VOCdevkit", folder / "VOCdevkit_folder":
            devkit.mkdir()
            (devkit / "seg11valid.txt").write_text("\n".join(names[:2]))
            for year in photographs.iterdir():
                (devkit / year.name).symlink_to(year)
