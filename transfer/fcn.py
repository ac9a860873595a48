"""FCN-32s on CaffeNet as an mmsegmentation EncoderDecoder, with its constants and its solver (protocols 6.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

import transfer
from pretrain.alexnet import CAFFENET, MEAN_RGB, AlexNet, Architecture
from pretrain.fillers import filled
from pretrain.precision import autocast, widened
from transfer import ADDED
from transfer.head import Standardise
from transfer.iu import LABELS
from transfer.voc import CLASSES, VOID

STRIDE = 32
KERNEL = 63  # of the deconvolution


@dataclass(frozen=True)
class Recipe(transfer.Recipe):
    """FCN-AlexNet's constants (protocols 6.1) are the defaults."""

    train: str  # 6.1: SBD's train ("sbd"); shrunk recipes: a Segmentation image set of VOC2012
    test: str  # 6.1: seg11valid, the 736 images of VOC2011 val that are not in SBD's train
    side: int | None = None  # 6.1: full resolution; shrunk recipes: the longer side
    conv1_pad: int = 100  # 6.1
    fc6_pad: int = 0  # 6.1; the crop offset of 18 follows from the two paddings
    width: int = 4096  # 1.1: fc6 and fc7
    fc_std: tuple[float, float] = (0.005, 0.005)  # 1.1: the fillers of fc6, fc7; zeros are a dead network (6.2)
    fc_bias: float = 1.0  # 1.1
    dropout: float = 0.5  # 6.1
    background_weight: float = 1.0  # 6.1: the loss weighs all classes alike
    rate: float = 1e-4  # 6.1: fixed
    momentum: float = 0.9  # 6.1
    decay: float = 5e-4  # 6.1
    score_bias_rate: float = 2.0  # 6.1: multiplies the rate of the score layer's bias, which has no decay; all else 1/1
    accumulate: int = 20  # 6.1: Caffe's iter_size: gradients averaged over so many batches of 1
    # 6.1: updates, each of `accumulate` images, drawn with replacement. Paper: not said; released code: FCN's 100k
    # at a fixed rate, Colorization's (6.2) 150k with drops; we: FCN's.
    iterations: int = 100_000
    prepared: bool = field(
        default=False, kw_only=True, metadata=ADDED
    )  # ours: fresh layers fitted to the encoder's scales (transfer.head.prepare)
    # conv1–conv5: times the rate and each layer's multiplier (transfer.head.trunk_rates); published: one rate for all
    trunk_rate: float | None = field(default=None, kw_only=True, metadata=ADDED)
    score_every: int | None = None  # 6.1: 4000 iterations; the last score is the headline, the best an extra


def crop_offset(conv1_pad: int, fc6_pad: int) -> int:
    """Where in the deconvolution's output the input's pixel 0 lies; 18 for Caffe's paddings 100 and 0.

    Output j of fc6 is centred on input pixel 32·(j - fc6_pad) + 113 - conv1_pad (conv1 4i + 5 - pad,
    three pools 2i + 1, fc6 i + 2.5 - pad), and the deconvolution centres it on its pixel 32·j + 31.
    """
    offset = conv1_pad + STRIDE * fc6_pad - 82
    if offset < 0:
        raise ValueError(f"conv1_pad {conv1_pad} and fc6_pad {fc6_pad}: the output would not reach the input's edge")
    return offset


class Backbone(nn.Module):
    """N×3×H×W → (the input, N×width×h×w): `trunk` to pool5, then fc6 and fc7 as convolutions.

    fc6 and fc7 are fresh, filled as the recipe says from torch's global generator. The input goes
    along because the decode head crops to its size.
    """

    def __init__(self, recipe: Recipe, architecture: Architecture) -> None:
        super().__init__()
        self.dropout, self.precision = recipe.dropout, recipe.precision
        self.trunk = AlexNet(architecture, conv1_pad=recipe.conv1_pad)
        self.standardise = Standardise(architecture.widths[-1]) if recipe.prepared else nn.Identity()
        fc6 = nn.Conv2d(architecture.widths[-1], recipe.width, 6, padding=recipe.fc6_pad)
        self.fc6 = filled(fc6, std=recipe.fc_std[0], bias=recipe.fc_bias)
        self.fc7 = filled(nn.Conv2d(recipe.width, recipe.width, 1), std=recipe.fc_std[1], bias=recipe.fc_bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """N×3×H×W → (the input, N×width×h×w)."""
        with autocast(images.device, self.precision):
            x = F.dropout(F.relu(self.fc6(self.standardise(self.trunk(images)))), self.dropout, self.training)
            x = F.dropout(F.relu(self.fc7(x)), self.dropout, self.training)
        return images, widened(x)


class PixelLoss(nn.Module):
    """N×21×H×W, N×H×W → the weighted mean softmax cross-entropy over all pixels but void; 0 if all are void.

    Written out because mmseg's own fails when it is given class weights and asked to leave void out of the mean.
    """

    loss_name = "loss_ce"
    weights: Tensor

    def __init__(self, *, background_weight: float) -> None:
        super().__init__()
        weights = torch.tensor([background_weight] + [1.0] * len(CLASSES))
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, scores: Tensor, truth: Tensor, weight: None = None, ignore_index: int = VOID) -> Tensor:  # noqa: ARG002
        """N×21×H×W, N×H×W → a scalar; mmseg passes a weight of None."""
        total = F.cross_entropy(scores, truth, self.weights, ignore_index=ignore_index, reduction="sum")
        return total / self.weights[truth[truth != ignore_index]].sum().clamp(min=1e-6)


class DecodeHead(BaseDecodeHead):  # type: ignore[misc]
    """(N×3×H×W, N×width×h×w) → N×21×H×W: score layer (mmseg's conv_seg), bilinear ×32, crop.

    The score layer starts at zero and the deconvolution is fixed (protocols 6.1). Caffe's kernel is
    21×21 dense with bilinear weights on the diagonal; grouped, it is the same map.
    """

    def __init__(self, recipe: Recipe) -> None:
        loss = {"type": PixelLoss, "background_weight": recipe.background_weight}
        sizes = {"in_channels": recipe.width, "channels": recipe.width, "num_classes": len(LABELS)}
        super().__init__(**sizes, dropout_ratio=0, ignore_index=VOID, loss_decode=loss, init_cfg=None)
        nn.init.zeros_(self.conv_seg.weight)
        nn.init.zeros_(self.conv_seg.bias)
        self.offset = crop_offset(recipe.conv1_pad, recipe.fc6_pad)
        classes = len(LABELS)
        self.upscore = nn.ConvTranspose2d(classes, classes, KERNEL, stride=STRIDE, groups=classes, bias=False)
        self.upscore.requires_grad_(False)
        self.upscore.weight.copy_(bilinear_kernel().expand_as(self.upscore.weight))

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """(N×3×H×W, N×width×h×w) → N×21×H×W."""
        height, width = inputs[0].shape[-2:]
        scores: Tensor = self.upscore(self.cls_seg(inputs[1]))
        return scores[..., self.offset : self.offset + height, self.offset : self.offset + width]


def bilinear_kernel() -> Tensor:
    """63×63, for stride 32, as FCN's surgery.py fills it: a tent that is 1 at the centre."""
    tent = 1 - (torch.arange(KERNEL) - (KERNEL - 1) / 2).abs() / STRIDE
    return torch.outer(tent, tent)


def build_model(recipe: Recipe, architecture: Architecture = CAFFENET) -> Any:
    """The EncoderDecoder with fresh layers; the encoder belongs in `.backbone.trunk`."""
    return EncoderDecoder(
        backbone={"type": Backbone, "recipe": recipe, "architecture": architecture},
        decode_head={"type": DecodeHead, "recipe": recipe},
        data_preprocessor={"type": SegDataPreProcessor, "mean": MEAN_RGB, "std": (1.0, 1.0, 1.0), "size_divisor": 1},
        test_cfg=ConfigDict(mode="whole"),
    )


def optimizer(model: nn.Module, recipe: Recipe, *, own: Mapping[str, float] | None = None) -> torch.optim.SGD:
    """Caffe's SGD with its multipliers: the score layer's bias has its own (protocols 6.1), and what `own` names."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    bias = trained.pop("decode_head.conv_seg.bias")
    own = {} if own is None else own
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained.items() if n not in own]},
        {"params": [bias], "lr": recipe.rate * recipe.score_bias_rate, "weight_decay": 0.0},
    ]
    groups += [{"params": [trained[n]], "lr": recipe.rate * factor, "weight_decay": 0.0} for n, factor in own.items()]
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay)
