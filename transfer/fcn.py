"""FCN-32s on CaffeNet as an mmsegmentation EncoderDecoder (protocols 6.1)."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor, nn

from pretrain.alexnet import MEAN_RGB, AlexNet
from transfer.head import filled
from transfer.voc import CLASSES, VOID

LABELS = ("background", *CLASSES)
STRIDE = 32
KERNEL = 63  # of the deconvolution


def crop_offset(conv1_pad: int, fc6_pad: int) -> int:
    """Where in the deconvolution's output the input's pixel 0 lies; 18 for Caffe's paddings 100 and 0.

    Output j of fc6 is centred on input pixel 32·(j - fc6_pad) + 113 - conv1_pad (conv1 4i + 5 - pad,
    three pools 2i + 1, fc6 i + 2.5 - pad), and the deconvolution centres it on its pixel 32·j + 31.
    """
    return conv1_pad + STRIDE * fc6_pad - 82


class Backbone(nn.Module):
    """N×3×H×W → (the input, N×width×h×w): `trunk` to pool5, then fc6 and fc7 as convolutions.

    fc6 and fc7 are fresh, filled N(0, 0.005), bias 1 (protocols 1.1), from torch's global generator.
    The input goes along because the decode head crops to its size.
    """

    def __init__(self, *, conv1_pad: int, fc6_pad: int, width: int) -> None:
        super().__init__()
        self.trunk = AlexNet(conv1_pad=conv1_pad)
        self.fc6 = filled(nn.Conv2d(256, width, 6, padding=fc6_pad), std=0.005, bias=1.0)
        self.fc7 = filled(nn.Conv2d(width, width, 1), std=0.005, bias=1.0)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """N×3×H×W → (the input, N×width×h×w)."""
        x = F.dropout(F.relu(self.fc6(self.trunk(images))), 0.5, self.training)
        return images, F.dropout(F.relu(self.fc7(x)), 0.5, self.training)


class DecodeHead(BaseDecodeHead):  # type: ignore[misc]
    """(N×3×H×W, N×width×h×w) → N×21×H×W: score layer (mmseg's conv_seg), bilinear ×32, crop.

    The score layer starts at zero and the deconvolution is fixed (protocols 6.1). Caffe's kernel is
    21×21 dense with bilinear weights on the diagonal; grouped, it is the same map.
    """

    def __init__(self, *, width: int, offset: int) -> None:
        loss = dict(type=CrossEntropyLoss, avg_non_ignore=True)
        super().__init__(
            width, width, num_classes=len(LABELS), dropout_ratio=0, ignore_index=VOID, loss_decode=loss, init_cfg=None
        )
        nn.init.zeros_(self.conv_seg.weight)
        nn.init.zeros_(self.conv_seg.bias)
        self.offset = offset
        self.upscore = nn.ConvTranspose2d(
            len(LABELS), len(LABELS), KERNEL, stride=STRIDE, groups=len(LABELS), bias=False
        ).requires_grad_(False)
        self.upscore.weight.copy_(bilinear_kernel().expand_as(self.upscore.weight))

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """(N×3×H×W, N×width×h×w) → N×21×H×W."""
        height, width = inputs[0].shape[-2:]
        scores: Tensor = self.upscore(self.cls_seg(inputs[1]))
        return scores[..., self.offset : self.offset + height, self.offset : self.offset + width]


def bilinear_kernel() -> Tensor:
    """63×63, Caffe's bilinear filler for stride 32: a tent that is 1 at the centre."""
    tent = 1 - (torch.arange(KERNEL) - (KERNEL - 1) / 2).abs() / STRIDE
    return torch.outer(tent, tent)


def build_model(*, conv1_pad: int, fc6_pad: int, width: int) -> Any:
    """The EncoderDecoder with fresh layers; the encoder belongs in `.backbone.trunk`."""
    head: dict[str, Any] = {"type": DecodeHead, "width": width, "offset": crop_offset(conv1_pad, fc6_pad)}
    return EncoderDecoder(
        backbone={"type": Backbone, "conv1_pad": conv1_pad, "fc6_pad": fc6_pad, "width": width},
        decode_head=head,
        data_preprocessor={"type": SegDataPreProcessor, "mean": MEAN_RGB, "std": (1.0, 1.0, 1.0), "size_divisor": 1},
        test_cfg=ConfigDict(mode="whole"),
    )
