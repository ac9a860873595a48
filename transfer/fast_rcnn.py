"""Fast R-CNN of detectron2 on the encoder: its constants, its model, what the model takes.

protocols 5.1 and 5.2; FR is rbgirshick/fast-rcnn. Boxes are those of transfer.voc, and detectron2's:
x2, y2 exclusive, so that overlaps are VOC's. Released code (FR): inclusive x2, y2 with "+1" in overlaps
and RoI pooling, without it in box targets; we differ by that one pixel in pooling and targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor

import transfer
from pretrain import Precision
from pretrain.alexnet import CAFFENET, MEAN_RGB, AlexNet, Architecture
from pretrain.files import Failed
from pretrain.precision import autocast, widened
from pretrain.randomness import reseed
from transfer import ADDED, voc
from transfer.divergence import REMEDY
from transfer.head import Head, trunk_rates
from transfer.proposals import SelectiveSearch

CLASSES = len(voc.CLASSES)
STRIDE = 16
PREPARED_ROIS = 64
DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # box targets are standardised by Predictor, not by fixed weights


@dataclass(frozen=True)
class Recipe(transfer.Recipe):
    """Fast R-CNN's constants. 5.1, 5.2 …: sections of protocols.md."""

    year: str  # 5.1: VOC2007
    train_split: str  # 5.1: trainval. Released code: FR trains on difficult objects, its successor not; we do
    test_split: str  # 5.1: test
    train_images: int | None  # 5.1: all (None); fewer are evenly spaced in the split
    test_images: int | None  # 5.1: all
    search: SelectiveSearch  # 5.1: about 2000 boxes an image; see transfer.proposals
    published: bool  # 5.1: the authors' own boxes, where their files lie beside the devkit; shrunken recipes: False
    train_sides: tuple[int, ...]  # 5.2: shorter side, drawn per image from 5.1's five; FR (paper-40k): 600
    train_longest: int  # 5.1: 2000 with multiple scales, else 1000
    test_side: int  # 5.2 single-scale test, 5.1: 600
    test_longest: int  # 5.1: 1000
    iterations: int  # 5.2: 150k; FR (paper-40k): 40k
    rate: float  # 5.1: 1e-3; biases twice that, without decay
    rate_every: int  # 5.2: 50k; FR (paper-40k): once, at 30k
    rate_factor: float  # 5.1: 0.1
    momentum: float  # 5.1: 0.9
    decay: float  # 5.1: 5e-4
    freeze_conv1: bool  # 5.2. Paper: not said; released code: frozen; we: free, as a random conv1 must be; or a variant
    images_per_batch: int  # 5.1: 2
    rois_per_image: int  # 5.1: 64
    foreground_fraction: float  # 5.1: 0.25 at most
    foreground_overlap: float  # 5.1: 0.5 and more
    background_overlap: float  # 5.1: from 0.1 on; what overlaps less is not drawn
    smooth_l1_beta: float  # 5.1: sigma 1
    head_width: int  # 1.1: 4096
    conditioned: bool  # ours: fresh layers fitted to the encoder's scales (transfer.head.prepare); published: False
    nms: float  # 5.1: 0.3
    most_per_image: int  # 5.1: 100 candidates of a class in an image, before NMS
    most_per_class: int  # 5.1: 40 candidates of a class times the number of images, before NMS
    # conv1–conv5: times the rate and each layer's multiplier (transfer.head.trunk_rates); published: one rate for all
    trunk_rate: float | None = field(default=None, kw_only=True, metadata=ADDED)
    dropout: float = field(default=0.5, kw_only=True, metadata=ADDED)  # 1.1: of fc6 and fc7


@dataclass(frozen=True)
class Example:
    """An image with its objects and its proposals (n×4)."""

    image: Path
    annotation: voc.Annotation
    proposals: voc.Floats


class Trunk(Backbone):  # type: ignore[misc]
    """The encoder's conv1…relu5 as a detectron2 backbone. Keys of `trunk` stay those of the encoder file.

    In training, detectron2 fills smaller images of a batch up to the largest with zeros, which are MEAN_RGB: for an
    encoder with another mean (pad_value) that part is not its own zero. A test image stands alone, and has none.
    """

    def __init__(self, architecture: Architecture, precision: Precision = "fp32") -> None:
        super().__init__()
        self.trunk, self.precision = AlexNet(architecture, conv1_pad=5, pool1_pad=1, pool2_pad=1), precision

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """N×3×H×W → N×channels×h×w, under the name conv5."""
        with autocast(x.device, self.precision):
            return {"conv5": widened(self.trunk.features(x.contiguous(memory_format=torch.channels_last)))}

    def output_shape(self) -> dict[str, Any]:
        """Channels and stride of conv5."""
        return {"conv5": ShapeSpec(channels=self.trunk.architecture.widths[-1], stride=STRIDE)}


class BoxHead(Head):
    """fc6 and fc7 on pooled RoIs, computed in the recipe's precision."""

    def __init__(self, recipe: Recipe, *, channels: int) -> None:
        super().__init__(
            channels=channels, width=recipe.head_width, prepared=recipe.conditioned, dropout=recipe.dropout
        )
        self.precision = recipe.precision

    def forward(self, x: Tensor) -> Tensor:
        """N×channels×6×6 → N×width."""
        with autocast(x.device, self.precision):
            return widened(super().forward(x))


class Predictor(FastRCNNOutputLayers):  # type: ignore[misc]
    """detectron2's output layers, with FR's per-class standardised targets and limits per class."""

    def __init__(self, *, means: Tensor, stds: Tensor, most_per_image: int, **constants: Any) -> None:
        super().__init__(**constants)
        self.most_per_image = most_per_image
        self.register_buffer("means", means, persistent=False)  # 20×4
        self.register_buffer("stds", stds, persistent=False)

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, deltas: Tensor, labels: Tensor) -> Tensor:
        """Smooth L1 summed over the four coordinates, divided by the number of RoIs."""
        chosen = ((labels >= 0) & (labels < self.num_classes)).nonzero()[:, 0]
        of = labels[chosen]
        targets = self.box2box_transform.get_deltas(proposal_boxes[chosen], gt_boxes[chosen])
        targets = (targets - self.means[of]) / self.stds[of]
        predicted = deltas.view(-1, self.num_classes, 4)[chosen, of]
        loss = F.smooth_l1_loss(predicted, targets, beta=self.smooth_l1_beta, reduction="sum")
        return loss / max(labels.numel(), 1)

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], given: list[Any]) -> Any:
        """Boxes of every class, from un-normalised predictions."""
        scores, deltas = predictions
        return super().predict_boxes((scores, deltas * self.stds.flatten() + self.means.flatten()), given)

    def inference(self, predictions: tuple[Tensor, Tensor], given: list[Any]) -> Any:
        """Each image's best `most_per_image` candidates of each class, clipped, not yet suppressed.

        FR counts its limit per class over the whole image set before NMS; so NMS waits until then. A proposal with
        `copies` counts as so many candidates, all with its scores and its boxes: FR maps both back to the proposals
        that coincide with it (its im_detect), which fills the limits, until NMS leaves one of them.
        """
        if not all(values.isfinite().all() for values in predictions):  # detectron2 would drop them silently
            raise Failed(f"detection: some predictions are not finite, training diverged: {REMEDY}")
        kept, boxes = [], []
        predicted = self.predict_probs(predictions, given), self.predict_boxes(predictions, given)
        for proposals, scores, found in zip(given, *predicted, strict=True):
            if proposals.has("copies"):
                scores, found = (values.repeat_interleave(proposals.copies, dim=0) for values in (scores, found))
            best = scores.topk(min(self.most_per_image, len(scores)), dim=0)
            kept.append(torch.full_like(scores, -1.0).scatter(0, best.indices, best.values))
            boxes.append(found)
        sizes = [g.image_size for g in given]
        return fast_rcnn_inference(boxes, kept, sizes, score_thresh=0.0, nms_thresh=1.0, topk_per_image=-1)


def build(recipe: Recipe, *, means: Tensor, stds: Tensor, seed: int, architecture: Architecture = CAFFENET) -> Any:
    """A GeneralizedRCNN with fresh heads; its encoder sits at .backbone.trunk."""
    reseed(seed, "detection", "init")
    predictor = Predictor(
        means=means,
        stds=stds,
        most_per_image=recipe.most_per_image,
        input_shape=ShapeSpec(channels=recipe.head_width),
        box2box_transform=Box2BoxTransform(weights=DELTA_WEIGHTS),
        num_classes=CLASSES,
        test_nms_thresh=recipe.nms,
        smooth_l1_beta=recipe.smooth_l1_beta,
    )
    overlaps = [recipe.background_overlap, recipe.foreground_overlap]
    heads = StandardROIHeads(
        box_in_features=["conv5"],
        box_pooler=ROIPooler(output_size=6, scales=(1 / STRIDE,), sampling_ratio=0, pooler_type="ROIPool"),
        box_head=BoxHead(recipe, channels=architecture.widths[-1]),
        box_predictor=predictor,
        num_classes=CLASSES,
        batch_size_per_image=recipe.rois_per_image,
        positive_fraction=recipe.foreground_fraction,
        proposal_matcher=Matcher(overlaps, [-1, 0, 1], allow_low_quality_matches=False),
        proposal_append_gt=True,
    )
    model = GeneralizedRCNN(
        backbone=Trunk(architecture, recipe.precision),
        proposal_generator=None,
        roi_heads=heads,
        pixel_mean=MEAN_RGB,
        pixel_std=(1.0, 1.0, 1.0),
    )
    model.backbone.trunk.conv1.requires_grad_(not recipe.freeze_conv1)
    return model


def prepare(model: Any, inputs: Sequence[dict[str, Any]], recipe: Recipe, *, seed: int) -> dict[str, float] | None:
    """Fit fc6 and fc7 to the encoder (transfer.head), on up to PREPARED_ROIS proposals an image; the trunk's rates."""
    heads, trunk = model.roi_heads, model.backbone.trunk

    def conv5(one: dict[str, Any]) -> Tensor:
        return model.backbone(model.preprocess_image([one]).tensor)["conv5"]  # type: ignore[no-any-return]

    def forward() -> None:
        for one in inputs:
            given = one["proposals"].proposal_boxes
            chosen = given[:: max(1, len(given) // PREPARED_ROIS)]
            heads.box_head(heads.box_pooler([conv5(one)], [chosen.to(model.device)]))

    model.eval()
    heads.box_head.prepare(forward)
    if recipe.trunk_rate is None:
        return None
    top = lambda: heads.box_head.standardise(torch.cat([conv5(one).flatten(2) for one in inputs], 2))  # noqa: E731
    return trunk_rates(trunk, top, times=recipe.trunk_rate, prefix="backbone.trunk.", seed=seed)


def target_statistics(train: Sequence[Example], *, overlap: float) -> tuple[Tensor, Tensor]:
    """20×4, 20×4: mean and standard deviation of the box targets of each class, with flips."""
    transform = Box2BoxTransform(weights=DELTA_WEIGHTS)
    count, total, squares = np.zeros((CLASSES, 1)), np.zeros((CLASSES, 4)), np.zeros((CLASSES, 4))
    for example in train:
        truth = example.annotation
        if not len(truth.boxes):
            continue
        boxes = np.concatenate([truth.boxes, example.proposals])
        shared = voc.overlaps(boxes, truth.boxes)
        near, chosen = shared.argmax(1), shared.max(1) >= overlap
        source, target = (torch.from_numpy(b) for b in (boxes[chosen], truth.boxes[near[chosen]]))
        deltas, labels = transform.get_deltas(source, target).numpy(), truth.labels[near[chosen]]
        np.add.at(count, labels, 1)
        np.add.at(total, labels, deltas)
        np.add.at(squares, labels, deltas**2)
    total[:, 0] = 0.0  # every image comes flipped too, with dx of the other sign
    means = total / np.maximum(count, 1)
    variances = squares / np.maximum(count, 1) - means**2
    stds = np.sqrt(np.where(variances > 1e-8, variances, 1.0))  # a class that is hardly there is left as it is
    return torch.from_numpy(means).float(), torch.from_numpy(stds).float()


def model_input(example: Example, *, side: int, longest: int, flipped: bool = False) -> tuple[dict[str, Any], float]:
    """What GeneralizedRCNN takes for one image, and its scale: shorter side `side`, longer at most `longest`."""
    image = voc.read_image(example.image).astype(np.float32)
    shorter, longer = sorted(image.shape[:2])
    scale = min(side / shorter, longest / longer)
    if flipped:
        image = image[:, ::-1]
    image = cv2.resize(np.ascontiguousarray(image), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    size, width = image.shape[:2], example.annotation.width
    truth = Instances(size, gt_boxes=scaled(example.annotation.boxes, scale, width if flipped else None))
    truth.gt_classes = torch.from_numpy(example.annotation.labels)
    given = Instances(size, proposal_boxes=scaled(example.proposals, scale, width if flipped else None))
    given.objectness_logits = torch.zeros(len(given))
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return {"image": pixels, "instances": truth, "proposals": given}, scale


def scaled(boxes: voc.Floats, scale: float, mirror: int | None) -> Any:
    """detectron2's Boxes, mirrored in an image of width `mirror` and then scaled."""
    if mirror is not None:
        boxes = np.stack([mirror - boxes[:, 2], boxes[:, 1], mirror - boxes[:, 0], boxes[:, 3]], axis=1)
    return Boxes(torch.from_numpy(boxes * scale).float())
