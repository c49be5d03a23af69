"""Losses of the segmentation networks: soft Dice, with or without cross-entropy."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor, *, over_batch: bool = False) -> Tensor:
    """1 - soft Dice of softmax(logits) and target, averaged over classes (paper: the loss of B.2 and L_sem).

    Args:
        logits: [N, 1 + structures, *shape].
        target: class indices [N, *shape] int64, or probabilities of the shape of `logits`.
        over_batch: count overlap over the whole batch instead of image by image, which is steadier where an
            image lacks a structure.
    """
    indices = target.dim() == logits.dim() - 1
    loss = DiceLoss(softmax=True, to_onehot_y=indices, batch=over_batch)
    return loss(logits, target[:, None] if indices else target)


def segmentation_loss(logits: Tensor, target: Tensor, kind: Literal["dice_ce", "dice"] = "dice_ce") -> Tensor:
    """The loss called `kind` (SegmentationConfig.loss); arguments as for `dice_loss`."""
    if kind == "dice":
        return dice_loss(logits, target)
    return dice_loss(logits, target, over_batch=True) + F.cross_entropy(logits, target)
