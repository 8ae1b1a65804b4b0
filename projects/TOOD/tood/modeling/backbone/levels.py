"""Properties of any backbone that a detector needs: strides of maps, and sizes of images."""

from typing import List, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def get_strides(backbone, features: Sequence[str], head: nn.Module) -> List[int]:
    """Return the strides of a backbone's feature maps, in pixels.

    Raises:
        ValueError: for a feature map that it does not make, and for a head of other strides.
    """
    shapes = backbone.output_shape()
    for name in features:
        if name not in shapes:
            raise ValueError(
                f"head_in_features has {name!r}, but the backbone makes {', '.join(shapes)}"
            )
    strides = [shapes[name].stride for name in features]
    of_head = list(getattr(head, "strides", strides))
    if of_head != strides:
        raise ValueError(
            f"the head has the strides {of_head}, but its feature maps have {strides}; set "
            "head.strides to them, and head.anchor_generator.sizes to "
            f"{[[8 * stride] for stride in strides]}"
        )
    return strides


def get_size_divisibility(backbone) -> int:
    """Return the multiple of pixels that images are padded to. Detectron2's ViT states it only
    as a padding constraint, in a spelling that Detectron2 does not read (its main branch, 2026):
    pixels at the right and lower borders without a patch would be ignored.
    """
    constraints = getattr(backbone, "padding_constraints", {})
    names = ("size_divisibility", "size_divisiblity")
    return max(backbone.size_divisibility, *(constraints.get(name, 0) for name in names))


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) with zeros on the right and below; multiple 0: not at all."""
    if multiple < 2:
        return images
    right, below = -images.shape[-1] % multiple, -images.shape[-2] % multiple
    return F.pad(images, (0, right, 0, below)) if right or below else images
