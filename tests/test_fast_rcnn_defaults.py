"""Where detectron2's defaults differ from Fast R-CNN (protocols 5.1, 5.2), the difference is set: read back here."""

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from pretrain.alexnet import MEAN_RGB
from pretrain.solver import parameter_groups
from transfer.detection import PAPER
from transfer.fast_rcnn import build


@pytest.fixture(scope="module")
def model() -> Any:
    """The `paper` recipe's, whole."""
    return build(PAPER, means=torch.zeros(20, 4), stds=torch.ones(20, 4), seed=0)


def heads(path: str) -> Callable[[Any], Any]:
    return attrgetter(f"roi_heads.{path}")


def predictor(path: str) -> Callable[[Any], Any]:
    return attrgetter(f"roi_heads.box_predictor.{path}")


def recipe(path: str) -> Callable[[Any], Any]:
    return lambda _: getattr(PAPER, path)


def group(index: int, key: str) -> Callable[[Any], Any]:
    """A setting of SGD for weights (0) or biases (1)."""
    return lambda model: parameter_groups(model, rate=PAPER.rate, decay=PAPER.decay)[index][key]


def frozen(model: Any) -> int:
    return sum(not p.requires_grad for p in model.parameters())


# detectron2's key, its default, ours, where ours is read.
CONSTANTS: list[tuple[str, Any, Any, Callable[[Any], Any]]] = [
    ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512, 64, heads("batch_size_per_image")),
    ("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.25, 0.25, heads("positive_fraction")),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.5], [0.1, 0.5], lambda m: m.roi_heads.proposal_matcher.thresholds[1:-1]),
    ("MODEL.ROI_HEADS.IOU_LABELS", [0, 1], [-1, 0, 1], heads("proposal_matcher.labels")),
    ("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", True, True, heads("proposal_append_gt")),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 80, 20, heads("num_classes")),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 80, 20, predictor("num_classes")),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["res4"], ["conv5"], heads("box_in_features")),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5, 0.3, predictor("test_nms_thresh")),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, 0.0, predictor("test_score_thresh")),
    ("TEST.DETECTIONS_PER_IMAGE", 100, 100, predictor("most_per_image")),  # theirs after NMS, ours of a class, before
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", "RoIPool",
     lambda m: type(m.roi_heads.box_pooler.level_poolers[0]).__name__),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, (6, 6), heads("box_pooler.output_size")),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", 1024, 4096, heads("box_head.fc6.out_features")),
    ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0, 1.0, predictor("smooth_l1_beta")),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0),
     predictor("box2box_transform.weights")),  # the targets are standardised per class instead
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "smooth_l1", "smooth_l1", predictor("box_reg_loss_type")),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 1.0, 1.0,
     lambda m: m.roi_heads.box_predictor.loss_weight["loss_box_reg"]),
    ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, 80, predictor("bbox_pred.out_features")),  # 20 · 4
    ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", False, False, heads("train_on_pred_boxes")),
    ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False, False, predictor("use_sigmoid_ce")),
    ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", False, False, predictor("use_fed_loss")),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", None, attrgetter("proposal_generator")),
    ("MODEL.MASK_ON", False, False, heads("mask_on")),
    ("MODEL.KEYPOINT_ON", False, False, heads("keypoint_on")),
    ("MODEL.BACKBONE.FREEZE_AT", 2, 0, frozen),
    ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], list(MEAN_RGB), lambda m: m.pixel_mean.flatten().tolist()),  # BGR
    ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], lambda m: m.pixel_std.flatten().tolist()),
    ("INPUT.MIN_SIZE_TRAIN", (800,), (480, 576, 688, 864, 1200), recipe("train_sides")),
    ("INPUT.MAX_SIZE_TRAIN", 1333, 2000, recipe("train_longest")),
    ("INPUT.MIN_SIZE_TEST", 800, 600, recipe("test_side")),
    ("INPUT.MAX_SIZE_TEST", 1333, 1000, recipe("test_longest")),
    ("SOLVER.IMS_PER_BATCH", 16, 2, recipe("images_per_batch")),
    ("SOLVER.MAX_ITER", 40_000, 150_000, recipe("iterations")),
    ("SOLVER.STEPS", (30_000,), 50_000, recipe("rate_every")),  # ours: after every 50,000
    ("SOLVER.GAMMA", 0.1, 0.1, recipe("rate_factor")),
    ("SOLVER.BASE_LR", 1e-3, 1e-3, group(0, "lr")),
    ("SOLVER.BIAS_LR_FACTOR", 1.0, 2e-3, group(1, "lr")),  # ours: twice the rate
    ("SOLVER.WEIGHT_DECAY", 1e-4, 5e-4, group(0, "weight_decay")),
    ("SOLVER.WEIGHT_DECAY_BIAS", None, 0.0, group(1, "weight_decay")),  # theirs: as the weights'
    ("SOLVER.MOMENTUM", 0.9, 0.9, recipe("momentum")),
]  # fmt: skip


@pytest.mark.parametrize(("key", "default", "ours", "read"), CONSTANTS, ids=[row[0] for row in CONSTANTS])
def test_a_constant(model: Any, key: str, default: Any, ours: Any, read: Callable[[Any], Any]) -> None:
    assert attrgetter(key)(get_cfg()) == default
    assert read(model) == ours


def test_paddings_scale_and_fillers(model: Any) -> None:
    """What detectron2 has no key for."""
    trunk, head, outputs = model.backbone.trunk, model.roi_heads.box_head, model.roi_heads.box_predictor
    assert (trunk.conv1.padding, trunk.pool1_pad, trunk.pool2_pad) == ((5, 5), 1, 1)
    assert model.roi_heads.box_pooler.level_poolers[0].spatial_scale == 1 / 16
    assert head.fc6.weight.shape == (4096, 256 * 6 * 6)
    for layer, std, bias in ((head.fc6, 0.005, 1), (head.fc7, 0.005, 1), (outputs.cls_score, 0.01, 0),
                             (outputs.bbox_pred, 0.001, 0)):  # fmt: skip
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.bias.unique().tolist() == [bias]
    assert outputs.cls_score.out_features == 21
    assert isinstance(head.standardise, nn.Identity)  # published: what the trunk gives goes in as it is


def test_conv1_can_be_frozen() -> None:
    """The released code's; the recipe leaves it free (MODEL.BACKBONE.FREEZE_AT above)."""
    narrow = dataclasses.replace(PAPER, head_width=8, freeze_conv1=True)
    model = build(narrow, means=torch.zeros(20, 4), stds=torch.ones(20, 4), seed=0)
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert names == {"backbone.trunk.conv1.weight", "backbone.trunk.conv1.bias"}


def test_dropout_in_fc6_and_fc7_is_a_half(model: Any) -> None:
    """With Caffe's biases of 1 all units fire, so zeros are dropout's; detectron2's box heads have none."""
    head, x = model.roi_heads.box_head, torch.zeros(4, 256, 6, 6)
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        hook = head.fc7.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
        fc7 = head.train()(x)
        hook.remove()
        assert (head.eval()(x) > 0).float().mean() > 0.9
    for values in (seen[0], fc7):
        assert (values == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert seen[0].max() == 2  # 1 / (1 - 0.5)


def proposals(boxes: torch.Tensor) -> Instances:
    return Instances((600, 1000), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))


def test_rois_are_sampled_as_in_the_released_code(model: Any) -> None:
    """Foreground from an overlap of 0.5, at most 16 of 64; background from 0.1 up to 0.5; less is never drawn."""
    truth = Instances(
        (600, 1000), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 100.0, 100.0]])), gt_classes=torch.tensor([7])
    )
    widths = torch.tensor([9.0, 9.9, 10.0, 30.0, 49.9, 50.0, 80.0])  # hundredths of overlap
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), widths, torch.full((7,), 100.0)], dim=1)
    with EventStorage():
        (few,) = model.roi_heads.label_and_sample_proposals([proposals(boxes)], [truth])
        (many,) = model.roi_heads.label_and_sample_proposals([proposals(boxes.repeat(50, 1))], [truth])
    drawn = sorted(zip(few.proposal_boxes.tensor[:, 2].tolist(), few.gt_classes.tolist(), strict=True))
    expected = [(10.0, 20), (30.0, 20), (49.9, 20), (50.0, 7), (80.0, 7), (100.0, 7)]  # 100: the object itself
    assert drawn == [(pytest.approx(width), label) for width, label in expected]
    assert len(many) == 64
    assert (many.gt_classes == 7).sum() == 16
    assert many.proposal_boxes.tensor[:, 2].min() == 10.0


def test_nothing_is_thrown_away_before_the_whole_set_is_seen(model: Any) -> None:
    """100 of each class leave an image, however low their scores and however much they overlap."""
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0]]).repeat(130, 1)
    logits = torch.zeros(130, 21)
    logits[:, 20] = 12.0  # background: the scores of all others are below 1e-5
    ((out,), _) = model.roi_heads.box_predictor.inference((logits, torch.zeros(130, 80)), [proposals(boxes)])
    assert out.pred_classes.bincount().tolist() == [100] * 20
    assert 0 < out.scores.max() < 1e-5
