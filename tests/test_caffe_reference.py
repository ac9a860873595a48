"""The networks against Caffe's layers written down again in float64 NumPy, from their definitions alone.

Protocols 1.1 (layers, LRN, pooling), 5.1 (RoI pooling), 6.1 (paddings). Ours computes in float32, so
the largest difference may be TOLERANCE of the largest value: sums of up to 3456 products of rounded
numbers lose some 1e-6 of it. (Done once by hand: OpenCV 4.10's readNetFromCaffe, given prototxts and
.caffemodel files of such trunks with either order of LRN and conv1 pads 0, 5, 100, differs by 2.2e-6 at most.)
"""

import dataclasses
import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from scipy.signal import correlate
from torch import nn

from pretrain.alexnet import CAFFENET, AlexNet, Architecture
from transfer import voc
from transfer.classification import RECIPES as CLASSIFICATION
from transfer.classification import Classifier
from transfer.detection import RECIPES as DETECTION
from transfer.fast_rcnn import STRIDE, build
from transfer.head import Head

TOLERANCE = 1e-5
Floats = voc.Floats
Rounding = Callable[[float], int]


# ---- Caffe's layers ----


def convolution(x: Floats, w: Floats, b: Floats, *, stride: int = 1, pad: int = 0, groups: int = 1) -> Floats:
    """C×H×W, outputs×(C/groups)×k×k → outputs×h×w: cross-correlation, each group on its own channels."""
    k = w.shape[-1]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    parts = zip(np.split(windows, groups), np.split(w, groups), strict=True)
    return np.concatenate([np.tensordot(f, g, ((1, 2, 3), (0, 3, 4))) for g, f in parts]) + b[:, None, None]


def pooling(x: Floats, *, pad: int = 0, rounding: Rounding = math.ceil, outside: float = -np.inf) -> Floats:
    """C×H×W → C×h×w: 3×3, stride 2, the output's size rounded up, maxima over what lies inside the image.

    Caffe drops a last window that starts in the padding. With kernel 3, stride 2 and padding 1 there is
    none such: the last window starts at H or before.
    """
    height, width = (rounding((side + 2 * pad - 3) / 2) + 1 for side in x.shape[1:])
    assert all((n - 1) * 2 < side + pad for n, side in zip((height, width), x.shape[1:], strict=True))
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=outside)
    padded = np.pad(padded, ((0, 0), (0, 1), (0, 1)), constant_values=-np.inf)  # a window cut off by the edge
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.asarray(windows[:, : 2 * height : 2, : 2 * width : 2].max((3, 4)))


def lrn(x: Floats) -> Floats:
    """C×H×W → the same: x / (1 + 1e-4/5 · the sum of squares over channels c-2 … c+2) to the power 0.75."""
    squares = [sum(x[d] ** 2 for d in range(max(0, c - 2), min(len(x), c + 3))) for c in range(len(x))]
    return np.asarray(x / (1 + 1e-4 / 5 * np.array(squares)) ** 0.75)


def relu(x: Floats, slope: float = 0.0) -> Floats:
    return np.where(x > 0, x, slope * x)


@dataclasses.dataclass(frozen=True)
class Trunk:
    """Caffe's conv1 … pool5 with the weights of ours. What is not Caffe's can be asked for, to see it differ."""

    network: AlexNet
    pads: tuple[int, int, int] = (0, 0, 0)  # conv1, pool1, pool2
    rounding: Rounding = math.ceil
    outside: float = -np.inf
    local: Callable[[Floats], Floats] = lrn

    def __call__(self, x: Floats) -> tuple[Floats, Floats]:
        """3×H×W → relu5, pool5."""
        kind, (pad, *pads) = self.network.architecture, self.pads
        for k, (stride, inner, groups) in enumerate(zip((4, 1, 1, 1, 1), (pad, 2, 1, 1, 1), kind.groups, strict=True)):
            layer = self.network.convs()[k]
            w, b = (p.detach().double().numpy() for p in (layer.weight, layer.bias))  # type: ignore[union-attr]
            x = relu(convolution(x, w, b, stride=stride, pad=inner, groups=groups), kind.slope)
            if k < 2:
                x = self.local(x) if kind.norm == "lrn-before-pool" else x
                x = self.pooled(x, pads[k])
                x = self.local(x) if kind.norm == "lrn" else x
        return x, self.pooled(x, 0)

    def pooled(self, x: Floats, pad: int) -> Floats:
        return pooling(x, pad=pad, rounding=self.rounding, outside=self.outside)


def roi_pooling(x: Floats, box: Floats, *, side: int = 6) -> Floats:
    """C×H×W, x1 y1 x2 y2 in image pixels → C×side×side as in Caffe: width x2-x1+1, bins floor … ceil, empty 0."""
    left, top, right, bottom = (int(np.floor(v / 16 + 0.5)) for v in box)  # C's round, for what is not negative
    width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
    out = np.zeros((len(x), side, side))
    for i, j in product(range(side), range(side)):
        rows, columns = (
            slice(*(min(max(v + start, 0), end) for v in (i_ * size // side, -((i_ + 1) * size // -side))))
            for i_, size, start, end in ((i, height, top, x.shape[1]), (j, width, left, x.shape[2]))
        )
        cell = x[:, rows, columns]
        if cell.size:
            out[:, i, j] = cell.max((1, 2))
    return out


# ---- the trunk ----


def lively(architecture: Architecture = CAFFENET, pads: tuple[int, int, int] = (0, 0, 0), *, seed: int = 0) -> AlexNet:
    """Ours with He's weights and biases of all sizes, where Caffe's fillers would leave nearly constants."""
    torch.manual_seed(seed)
    trunk = AlexNet(architecture, conv1_pad=pads[0], pool1_pad=pads[1], pool2_pad=pads[2])
    for conv in trunk.convs():
        nn.init.kaiming_normal_(conv.weight)
        nn.init.normal_(conv.bias, std=20.0)  # type: ignore[arg-type]
    return trunk


def image(height: int, width: int, seed: int = 0) -> Floats:
    """3×H×W within ±120, as images are; exact in float32."""
    return np.random.default_rng(seed).uniform(-120, 120, (3, height, width)).astype(np.float32).astype(np.float64)


def difference(ours: Floats | torch.Tensor, reference: Floats) -> float:
    """The largest difference in units of the reference's largest value; infinite when the shapes differ."""
    values = np.asarray(ours, dtype=np.float64)
    if values.shape != reference.shape:
        return math.inf
    return float(np.abs(values - reference).max() / np.abs(reference).max())


@torch.no_grad()
def both(network: AlexNet, x: Floats) -> tuple[Floats, Floats]:
    """relu5 and pool5 of ours."""
    batch = torch.from_numpy(x[None]).float()
    return network.features(batch)[0].numpy(), network(batch)[0].numpy()


PLAIN, DETECTION_PADS, FCN_PADS = (0, 0, 0), (5, 1, 1), (100, 0, 0)
EVEN = [(PLAIN, 227, 227), (PLAIN, 131, 131), (DETECTION_PADS, 227, 227)]  # rounding down is the same
ODD = [
    (PLAIN, 145, 211), (PLAIN, 67, 90), (DETECTION_PADS, 150, 203), (DETECTION_PADS, 97, 96),
    (DETECTION_PADS, 61, 112), (FCN_PADS, 60, 85), (FCN_PADS, 1, 30), (FCN_PADS, 37, 37),
]  # fmt: skip


@pytest.mark.parametrize(("pads", "height", "width"), EVEN + ODD)
def test_the_trunk_is_caffes(pads: tuple[int, int, int], height: int, width: int) -> None:
    network, x = lively(pads=pads), image(height, width)
    relu5, pool5 = Trunk(network, pads)(x)
    ours = both(network, x)
    assert difference(ours[0], relu5) < TOLERANCE
    assert difference(ours[1], pool5) < TOLERANCE
    assert (relu5 == 0).mean() > 0.1  # alive
    assert relu5.std() > 0.1 * relu5.max() > 1
    floored = difference(ours[1], Trunk(network, pads, rounding=math.floor)(x)[1])
    assert floored < TOLERANCE if (pads, height, width) in EVEN else floored > 100 * TOLERANCE


@pytest.mark.parametrize("alpha", [0.0, 0.9e-4, 5e-4])  # none, nearly Caffe's, Caffe's not divided by the window
def test_another_lrn_would_be_seen(alpha: float) -> None:
    network, x, share = lively(), image(131, 150), (alpha / 1e-4) ** 0.5
    other = Trunk(network, local=lambda y: lrn(y * share) / share if share else y)
    assert difference(both(network, x)[0], other(x)[0]) > 100 * TOLERANCE


OTHERS = {
    "torchvision's": Architecture((64, 192, 384, 256, 256), (1, 1, 1, 1, 1), "none"),
    "ungrouped": Architecture(groups=(1, 1, 1, 1, 1)),
    "the original AlexNet": Architecture(norm="lrn-before-pool"),
    "BiGAN's": Architecture(norm="none", slope=0.2),
    "no LRN": Architecture(norm="none"),
}


@pytest.mark.parametrize(("name", "pads", "side"), [
    ("torchvision's", PLAIN, 131), ("ungrouped", PLAIN, 134), ("the original AlexNet", PLAIN, 227),
    ("the original AlexNet", DETECTION_PADS, 110), ("BiGAN's", PLAIN, 134), ("BiGAN's", DETECTION_PADS, 111),
    ("no LRN", FCN_PADS, 40),
])  # fmt: skip
def test_the_other_architectures(name: str, pads: tuple[int, int, int], side: int) -> None:
    network, x = lively(OTHERS[name], pads), image(side, side + 8)
    relu5, pool5 = Trunk(network, pads)(x)
    ours = both(network, x)
    assert difference(ours[0], relu5) < TOLERANCE
    assert difference(ours[1], pool5) < TOLERANCE
    if network.architecture.slope and pads == DETECTION_PADS:  # negative values: zeros outside would win
        assert difference(ours[0], Trunk(network, pads, outside=0.0)(x)[0]) > 100 * TOLERANCE


def test_the_reference_is_the_definition() -> None:
    """Its convolution is SciPy's correlation, filter by filter; its pooling and LRN are those of small cases."""
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(6, 17, 14)), rng.normal(size=(4, 3, 5, 5)), rng.normal(size=4)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    halves = (padded[:3], padded[:3], padded[3:], padded[3:])
    plain = [correlate(part, f, mode="valid")[0, ::4, ::4] + c for part, f, c in zip(halves, w, b, strict=True)]
    np.testing.assert_allclose(convolution(x, w, b, stride=4, pad=2, groups=2), plain, rtol=1e-9, atol=1e-9)
    row = np.arange(-6.0, 0).reshape(1, 1, 6).repeat(3, 1)
    assert pooling(row).tolist() == [[[-4, -2, -1]]]  # the last window holds two columns
    assert pooling(row, rounding=math.floor).tolist() == [[[-4, -2]]]
    assert pooling(row, pad=1)[0, 0].tolist() == [-5, -3, -1, -1]
    assert lrn(np.full((3, 1, 1), 100.0)).flatten() == pytest.approx(100 / 1.6**0.75)  # 1 + 1e-4 / 5 · 3 · 100²


# ---- the heads ----


def dense(layer: nn.Linear, x: Floats) -> Floats:
    """C×H×W or C → W·x + b, with x in the order channel, row, column."""
    w, b = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return np.asarray(np.tensordot(w.reshape(len(w), *x.shape), x, x.ndim) + b)


def test_the_heads_layers_are_caffes() -> None:
    torch.manual_seed(0)
    head, x = Head(channels=7, side=5, width=40).eval(), np.random.default_rng(0).normal(size=(7, 5, 5)) * 30
    fc7 = relu(dense(head.fc7, relu(dense(head.fc6, x))))
    with torch.no_grad():
        ours, transposed = (head(torch.from_numpy(y[None]).float())[0] for y in (x, x.transpose(0, 2, 1).copy()))
    assert difference(ours, fc7) < TOLERANCE
    assert difference(transposed, fc7) > 100 * TOLERANCE


def test_from_image_to_scores() -> None:
    """VOC07 classification's whole network at 227."""
    torch.manual_seed(0)
    model = Classifier(dataclasses.replace(CLASSIFICATION["paper"], width=64)).eval()
    model.trunk.load_state_dict(lively().state_dict())
    x = image(227, 227)
    fc7 = relu(dense(model.head.fc7, relu(dense(model.head.fc6, Trunk(model.trunk)(x)[1]))))
    with torch.no_grad():
        ours = model(torch.from_numpy(x[None]).float())[0]
    assert difference(ours, dense(model.fc8, fc7)) < TOLERANCE


# ---- RoI pooling ----


@pytest.fixture(scope="module")
def pool() -> Callable[[Floats, Floats], Floats]:
    """C×h×w, n×4 → n×C×6×6: as detectron2 pools in the `paper` recipe's model."""
    recipe = dataclasses.replace(DETECTION["paper"], head_width=8)
    pooler = build(recipe, means=torch.zeros(20, 4), stds=torch.ones(20, 4), seed=0).roi_heads.box_pooler

    def pooled(x: Floats, boxes: Floats) -> Floats:
        out: Floats = pooler([torch.from_numpy(x[None]).float()], [Boxes(torch.from_numpy(boxes))]).double().numpy()
        return out

    return pooled


def test_roi_pooling_is_caffes(pool: Callable[[Floats, Floats], Floats]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 23, 31)).astype(np.float32).astype(np.float64)
    corners = np.sort(rng.uniform(0, [23 * 16, 31 * 16], (150, 2, 2)), axis=1)[..., ::-1].reshape(-1, 4)
    odd = np.array([
        [0, 0, 0, 0], [0, 0, 1, 1], [100, 100, 103, 101],  # a single cell
        [8, 24, 40, 56], [24, 40, 88, 72], [7.99, 23.99, 40, 56],  # halves of a cell, which round up
        [0, 0, 31 * 16, 23 * 16], [480, 350, 496, 368], [488, 360, 496, 368],  # to the edge and beyond the last cell
        [600, 20, 700, 90],  # all bins empty
    ])  # fmt: skip
    boxes = np.concatenate([corners, odd]).astype(np.float32).astype(np.float64)
    expected = np.stack([roi_pooling(x, box) for box in boxes])
    np.testing.assert_array_equal(pool(x, boxes), expected)  # maxima: the same numbers, not nearly
    assert (expected[-1] == 0).all()
    assert (expected[:-1] == 0).any()  # some boxes have some empty bins


def test_our_boxes_differ_from_the_released_codes_by_one_pixel(pool: Callable[[Floats, Floats], Floats]) -> None:
    """fast_rcnn's convention: x2, y2 exclusive, 1 more than FR's. At scale 1, one edge in 16 is then a cell further."""
    x = np.random.default_rng(0).normal(size=(3, 20, 20)).astype(np.float32).astype(np.float64)
    inclusive = np.array([[16.0, 32.0, last, 250.0] for last in range(100, 196)])  # x1 y1 x2 y2 as in FR
    ours = pool(x, inclusive + np.array([0, 0, 1, 1]))
    theirs = np.stack([roi_pooling(x, box) for box in inclusive])
    differs = (ours != theirs).any((1, 2, 3))
    assert [int(last) for last in inclusive[differs, 2]] == [last for last in range(100, 196) if last % STRIDE == 7]
