"""The FCNs and Dense Adversary Generation once more, in PyTorch's eager mode.

A second opinion for the tests, and the other side of the benchmark. The networks are written anew
with PyTorch's functions after the deploy files of shelhamer/fcn.berkeleyvision.org; weights are
carried over by transposing. The attack keeps a batch until its last image is done: those that
finish leave it, and none takes their place, as in adversarial-library.

Shapes: `B` images, `H W` pixels, `C` classes.
"""

import functools

import numpy as np
import torch
from torch.nn import functional

from dag_jax.networks.fcn import MEAN_RGB


@functools.cache
def bilinear(channels, size, device):
    """Return the kernel of a bilinear Deconvolution, f32[channels, channels, size, size]."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size) - centre).abs() / factor
    kernel = torch.eye(channels)[:, :, None, None] * torch.outer(line, line)
    return kernel.to(device)


def upsample(x, size, stride):
    """Upsample f32[B, C, h, w] by a bilinear transposed convolution."""
    return functional.conv_transpose2d(x, bilinear(x.shape[1], size, x.device), stride=stride)


def crop(x, offset, like):
    """Return what lies under `like`, or as much of it as there is."""
    return x[..., offset : offset + like.shape[-2], offset : offset + like.shape[-1]]


def add(x, skip):
    """Return the sum of scores and a skip, which in a miniature may end earlier."""
    return x[..., : skip.shape[-2], : skip.shape[-1]] + skip


def fcn_8s(net, data):
    """voc-fcn8s (at once, heavy). Its crops are 5, 9 and 31 with padding 100 and a fc6 of 7."""
    x, pools = data, []
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for number in range(1, count + 1):
            pad = net.padding if stage == number == 1 else 1
            x = net.relu(net.conv(f"conv{stage}_{number}", x, padding=pad))
        x = net.pool(x, 2)
        pools.append(x)
    x = net.relu(net.conv("fc7", net.relu(net.conv("fc6", x))))
    x = upsample(net.conv("score_fr", x), 4, 2)
    x = add(x, crop(net.conv("score_stage4", pools[3]), net.fc_size - 2, x))
    x = upsample(x, 4, 2)
    x = add(x, crop(net.conv("score_stage3", pools[2]), 2 * net.fc_size - 5, x))
    return crop(upsample(x, 16, 8), net.padding + 43 - 16 * net.fc_size, data)


def fcn_alex_32s(net, data):
    """voc-fcn-alexnet. Its crop is 18 with stride 4, padding 100, a fc6 of 6, upsampled by 63."""

    def norm(x):
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1)

    x = net.conv("conv1", data, stride=net.stride, padding=net.padding)
    x = norm(net.pool(net.relu(x), 3))
    x = norm(net.pool(net.relu(net.conv("conv2", x, padding=2, groups=2)), 3))
    x = net.relu(net.conv("conv3", x, padding=1))
    x = net.relu(net.conv("conv4", x, padding=1, groups=2))
    x = net.pool(net.relu(net.conv("conv5", x, padding=1, groups=2)), 3)
    x = net.relu(net.conv("fc7", net.relu(net.conv("fc6", x))))
    # Each pool moves the first cell by a cell of what it pools: 1 + 2 + 4 strides.
    offset = net.padding - 5 - net.stride * (3 + 4 * net.fc_size) + (net.upsample_size - 1) // 2
    return crop(upsample(net.conv("score_fr", x), net.upsample_size, 8 * net.stride), offset, data)


FCNS = {"fcn_vgg": fcn_8s, "fcn_alex": fcn_alex_32s}


def flat(tree):
    """Return one dict of all layers, the trunk's and the head's."""
    return tree["backbone"] | {
        layer: arrays for layer, arrays in tree.items() if layer != "backbone"
    }


class Fcn:
    """An FCN of `FCNS` with the geometry and the parameters of ours."""

    def __init__(self, name, module, parameters, device="cpu"):
        """Take a network's name, its module, its parameters, and where to keep them."""
        self.forward = FCNS[name]
        self.padding = module.backbone.first_padding
        self.stride = getattr(module.backbone, "first_stride", 1)
        self.fc_size, self.upsample_size = module.fc_size, module.upsample_size
        self.weights = {
            layer: (
                torch.tensor(np.asarray(leaves["kernel"]).transpose(3, 2, 0, 1), device=device),
                torch.tensor(np.asarray(leaves["bias"]), device=device),
            )
            for layer, leaves in flat(parameters).items()
        }
        self.mean_bgr = torch.tensor(MEAN_RGB[::-1], device=device)

    def scores(self, images):
        """Map RGB images f32[B, H, W, 3], grey levels, to scores f32[B, C, H, W]."""
        return self.forward(self, (images.flip(-1) - self.mean_bgr).permute(0, 3, 1, 2))

    def conv(self, layer, x, **options):
        """Convolve with the weights of a layer."""
        return functional.conv2d(x, *self.weights[layer], **options)

    def relu(self, x):
        """Rectify."""
        return functional.relu(x)

    def pool(self, x, size):
        """Pool maxima of size x size cells with a stride of 2, as Caffe does."""
        return functional.max_pool2d(x, size, stride=2, ceil_mode=True)


def active_margins(scores, labels, adversarial, valid):
    """Return which targets are active, and the sum of their margins.

    Args:
      scores: f32[B, C, H, W].
      labels: i64[B, H, W].
      adversarial: i64[B, H, W].
      valid: bool[B, H, W], whether a pixel is a target.

    Returns:
      (bool[B, H, W], f32[]).
    """
    active = valid & (scores.detach().argmax(1) == labels)
    of_label = scores.gather(1, labels[:, None])[:, 0]
    of_adversarial = scores.gather(1, adversarial[:, None])[:, 0]
    return active, torch.where(active, of_label - of_adversarial, 0).sum()


def gradient(fcn, seen, labels, adversarial, valid):
    """Return which images have active targets, bool[B], and the gradient where one has, or None."""
    seen = seen.requires_grad_()
    active, loss = active_margins(fcn.scores(seen), labels, adversarial, valid)
    is_active = active.flatten(1).any(1)
    return is_active, torch.autograd.grad(loss, seen)[0] if is_active.any() else None


def attack(fcn, images, labels, adversarial, valid, *, max_steps=200, step_size=0.5):
    """Attack a batch until its last image is done; images that finish leave the batch.

    Args:
      fcn: an `Fcn`.
      images: f32[B, H, W, 3], RGB grey levels.
      labels: i64[B, H, W], classes; any where there is no target.
      adversarial: i64[B, H, W], likewise.
      valid: bool[B, H, W], whether a pixel is a target.
      max_steps: M_0.
      step_size: gamma in grey levels.

    Returns:
      (perturbations f32[B, H, W, 3] in grey levels, steps i64[B] that each image took).
    """
    perturbations = torch.zeros_like(images)
    steps = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    rows = torch.arange(len(images), device=images.device)  # those still under way
    batch = images, labels, adversarial, valid
    for step in range(max_steps + 1):
        image, *targets = batch
        seen = (image + perturbations[rows]).clamp(0, 255)
        is_active, slope = gradient(fcn, seen, *targets)
        steps[rows] = step
        if step == max_steps or slope is None:
            break
        if not is_active.all():
            rows, slope = rows[is_active], slope[is_active]
            batch = tuple(array[is_active] for array in batch)
        largest = slope.abs().amax((1, 2, 3), keepdim=True)
        # A zero gradient moves nothing: ours stops such an image, here it runs to the last step.
        perturbations[rows] -= step_size * slope / torch.where(largest > 0, largest, 1)
    return perturbations, steps
