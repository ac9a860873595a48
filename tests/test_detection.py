"""Detection through the real detectron2, with the real recipe shrunk."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from pretrain.alexnet import AlexNet, Encoder, load_encoder, read_encoder, save_encoder
from pretrain.files import Failed, Missing
from pretrain.randomness import reseed
from transfer import detection, voc
from transfer.detection import RECIPES, batch, data, distinct, evaluate, examples
from transfer.detections import Detections, average_precision, chance, limited, suppressed
from transfer.fast_rcnn import Predictor, Recipe, build, model_input, prepare, target_statistics
from transfer.proposals import SelectiveSearch

CPU = torch.device("cpu")
SHRUNK = dataclasses.replace(
    RECIPES["paper"],
    name="test",
    search=SelectiveSearch(mode="fast", side=None, least=8, most=300),
    train_sides=(96,),
    test_side=96,
    iterations=6,
    rate=3e-3,
    rate_every=5,
    head_width=64,
)
SHAPES = {"aeroplane": (230, 30, 30), "bird": (30, 60, 230), "car": (240, 230, 40)}


def xml(width: int, height: int, objects: list[tuple[str, tuple[int, ...], int]]) -> str:
    """An annotation; boxes in VOC's 1-based inclusive pixels."""
    text = f"<annotation><size><width>{width}</width><height>{height}</height></size>"
    for name, box, difficult in objects:
        sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        text += f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        text += f"<difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"
    return text + "</annotation>"


def make_devkit(root: Path, *, train: int, test: int = 0) -> Path:
    """A VOC2007 of images with two or three coloured rectangles each; without `test`, both splits are the same."""
    rng = np.random.default_rng(0)
    year = root / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    ids = [f"{i:06d}" for i in range(train + test)]
    for image_id in ids:
        image, objects = rng.integers(100, 140, (96, 128, 3)).astype(np.uint8), []
        for place, name in enumerate(rng.permutation(list(SHAPES))[: rng.integers(2, 4)]):
            x, y = 4 + 42 * place + int(rng.integers(0, 8)), int(rng.integers(5, 30))
            w, h = int(rng.integers(22, 32)), int(rng.integers(25, 60))
            cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), SHAPES[name], -1)
            objects.append((str(name), (x + 1, y + 1, x + w, y + h), 0))
        Image.fromarray(image).save(voc.image_path(year, image_id), quality=95)
        voc.annotation_path(year, image_id).write_text(xml(128, 96, objects))
    (year / "ImageSets/Main/trainval.txt").write_text("\n".join(ids[:train]))
    (year / "ImageSets/Main/test.txt").write_text("\n".join(ids[train:] or ids))
    return year.parent


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """An encoder with He's initialisation, which learns within a test's patience."""
    reseed(3, "test encoder")
    trunk, path = AlexNet(), tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    for conv in trunk.convs():
        torch.nn.init.kaiming_normal_(conv.weight)
        torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        trunk.conv1.weight /= 60  # inputs are 0–255
    save_encoder(path, trunk, {"method": "he", "variant": "", "supervision": "none"})
    return read_encoder(path)


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_devkit(tmp_path_factory.mktemp("voc"), train=5)


@pytest.fixture
def score(encoder: Encoder, tmp_path: Path) -> Callable[..., Any]:
    """evaluate() with folders of this test."""

    def run(devkit: Path, recipe: Recipe = SHRUNK, *, work: Path = tmp_path / "work", seed: int = 0) -> Any:
        return evaluate(encoder, recipe, devkit, seed=seed, work=work, device=CPU, cache=tmp_path / "cache")

    return run


def built(recipe: Recipe = SHRUNK, seed: int = 0) -> Any:
    return build(recipe, means=torch.zeros(20, 4), stds=torch.ones(20, 4), seed=seed)


# ---- the model ----


def test_the_encoder_arrives_whole_and_the_heads_are_fresh(encoder: Encoder) -> None:
    one, same, other = built(seed=0), built(seed=0), built(seed=1)
    for model in (one, same, other):
        assert load_encoder(model.backbone.trunk, encoder).loaded == 10
        for name, tensor in encoder.tensors.items():
            assert torch.equal(model.state_dict()[f"backbone.trunk.{name}"], tensor)
    heads = [name for name in one.state_dict() if name.startswith("roi_heads") and name.endswith("weight")]
    assert len(heads) == 4
    for name in heads:
        assert torch.equal(one.state_dict()[name], same.state_dict()[name])
        assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_the_paper_recipe_is_the_protocol() -> None:
    """What no key of detectron2's speaks of; the rest is in test_fast_rcnn_defaults.py."""
    recipe = RECIPES["paper"]
    assert (recipe.year, recipe.train_split, recipe.test_split) == ("VOC2007", "trainval", "test")
    assert recipe.train_images is recipe.test_images is None
    assert (recipe.search.most, recipe.most_per_class) == (2000, 40)
    assert not recipe.conditioned


def test_the_variants_of_the_paper_recipe() -> None:
    """paper-40k is Fast R-CNN as released (protocols 5.1); conv1 frozen or not is a variant of both (5.2)."""
    short = RECIPES["paper-40k"]
    assert (short.train_sides, short.train_longest, short.test_side, short.test_longest) == ((600,), 1000, 600, 1000)
    rates = [short.rate * short.rate_factor ** (i // short.rate_every) for i in (0, 29_999, 30_000, 39_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert short.iterations == 40_000
    changed = {"name", "train_sides", "train_longest", "iterations", "rate_every"}
    same = {f.name for f in dataclasses.fields(Recipe)} - changed
    assert all(getattr(short, name) == getattr(RECIPES["paper"], name) for name in same)
    for name in ("paper", "paper-40k"):
        assert RECIPES[f"{name}-conv1-frozen"].freeze_conv1
        assert dataclasses.replace(RECIPES[f"{name}-conv1-frozen"], name=name, freeze_conv1=False) == RECIPES[name]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_conv1_is_not_trained(frozen: bool, devkit: Path, score: Callable[..., Any], encoder: Encoder,
                                       tmp_path: Path) -> None:  # fmt: skip
    score(devkit, dataclasses.replace(SHRUNK, iterations=2, freeze_conv1=frozen))
    state = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)["model"]
    changed = {n for n, t in encoder.tensors.items() if not torch.equal(state[f"backbone.trunk.{n}"], t)}
    assert changed == {n for n in encoder.tensors if not (frozen and n.startswith("conv1"))}


def test_box_targets_are_standardised_and_predictions_are_not() -> None:
    """A predictor that says the standardised target exactly has no loss, and predicts the object's box."""
    means, stds = torch.randn(20, 4) * 0.1, torch.rand(20, 4) + 0.5
    predictor: Predictor = build(SHRUNK, means=means, stds=stds, seed=0).roi_heads.box_predictor
    source = torch.tensor([[10.0, 10.0, 50.0, 40.0], [0.0, 5.0, 20.0, 45.0]])
    target = torch.tensor([[14.0, 8.0, 60.0, 44.0], [2.0, 2.0, 25.0, 40.0]])
    labels = torch.tensor([3, 20])  # the second is background: it has no box loss
    deltas = torch.zeros(2, 20, 4)
    deltas[0, 3] = (predictor.box2box_transform.get_deltas(source, target)[0] - means[3]) / stds[3]
    assert predictor.box_reg_loss(source, target, deltas.flatten(1), labels).item() == pytest.approx(0, abs=1e-6)
    off = deltas.clone()
    off[0, 3, 0] += 3.0  # smooth L1 of 3 is 2.5, over two RoIs
    assert predictor.box_reg_loss(source, target, off.flatten(1), labels).item() == pytest.approx(1.25, abs=1e-5)
    given = Instances((100, 100), proposal_boxes=Boxes(source))
    (boxes,) = predictor.predict_boxes((torch.zeros(2, 21), deltas.flatten(1)), [given])
    assert torch.allclose(boxes.view(2, 20, 4)[0, 3], target[0], atol=1e-4)


def test_fresh_layers_are_fitted_to_the_pooled_proposals(devkit: Path, tmp_path: Path, encoder: Encoder) -> None:
    recipe = dataclasses.replace(SHRUNK, head_width=256, conditioned=True, trunk_rate=0.5)
    inputs = [
        model_input(e, side=96, longest=200)[0] for e in examples(recipe, devkit, "trainval", None, cache=tmp_path)
    ]
    model = built(recipe)
    load_encoder(model.backbone.trunk, encoder)
    rates = prepare(model, inputs, recipe, seed=0)
    heads, units = model.roi_heads, []
    heads.box_head.fc7.register_forward_hook(lambda _layer, _x, y: units.append(y))
    for one in inputs:
        conv5 = model.backbone(one["image"][None] - model.pixel_mean)["conv5"]
        given = one["proposals"].proposal_boxes
        heads.box_head(heads.box_pooler([conv5], [given[:: max(1, len(given) // 64)]]))
    assert torch.allclose(torch.cat(units).mean(0), torch.full((256,), 0.1), atol=1e-3)
    assert torch.allclose(torch.cat(units).std(0, correction=0), torch.ones(256), atol=1e-3)
    state = model.backbone.trunk.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.tensors.items())
    assert rates is not None
    assert set(rates) == {f"backbone.trunk.{name}" for name in encoder.tensors}
    assert prepare(built(recipe), inputs, dataclasses.replace(recipe, trunk_rate=None), seed=0) is None


def test_statistics_of_box_targets(devkit: Path, tmp_path: Path) -> None:
    train = examples(SHRUNK, devkit, "trainval", None, cache=tmp_path)
    means, stds = target_statistics(train, overlap=0.5)
    gathered: dict[int, list[list[float]]] = {}
    for example in train:
        truth = example.annotation
        for box in [*truth.boxes, *example.proposals]:
            shared = voc.overlaps(box[None], truth.boxes)[0]
            if shared.max() >= 0.5:
                target, size = truth.boxes[shared.argmax()], box[2:] - box[:2]
                shift = (target[:2] + target[2:] - box[:2] - box[2:]) / 2 / size
                growth = np.log((target[2:] - target[:2]) / size)
                rows = gathered.setdefault(int(truth.labels[shared.argmax()]), [])
                rows += [[sign * shift[0], shift[1], *growth] for sign in (1, -1)]
    assert len(gathered) == len(SHAPES)
    for label, rows in gathered.items():
        assert np.allclose(means[label], np.mean(rows, 0), atol=1e-6)
        assert np.allclose(stds[label], np.std(rows, 0), atol=1e-6)
    assert (stds[19] == 1).all()  # no tvmonitor here


# ---- what it takes ----


def test_inputs_are_scaled_and_mirrored(devkit: Path, tmp_path: Path) -> None:
    example = examples(SHRUNK, devkit, "trainval", 1, cache=tmp_path)[0]
    plain, scale = model_input(example, side=192, longest=2000)
    assert scale == 2.0
    assert plain["image"].shape == (3, 192, 256)
    flipped, limited_scale = model_input(example, side=192, longest=128, flipped=True)
    assert limited_scale == 1.0
    for kind, field in (("instances", "gt_boxes"), ("proposals", "proposal_boxes")):
        for box, mirrored in zip(plain[kind].get(field).tensor / 2, flipped[kind].get(field).tensor, strict=True):
            left, top, right, bottom = box.tolist()
            assert mirrored.tolist() == [128 - right, top, 128 - left, bottom]
    name = voc.CLASSES[example.annotation.labels[0]]
    for inputs in (plain, flipped):
        x, y = (inputs["instances"].gt_boxes.get_centers()[0]).int().tolist()
        colour = inputs["image"][:, y, x]
        assert torch.allclose(colour, torch.tensor(SHAPES[name]).float(), atol=12)


def test_an_epoch_shows_every_image_and_its_mirror_once(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = examples(SHRUNK, devkit, "trainval", None, cache=tmp_path)
    seen: list[tuple[str, bool, int]] = []

    def watched(example: Any, *, side: int, longest: int, flipped: bool) -> tuple[dict[str, Any], float]:
        assert longest == recipe.train_longest
        seen.append((example.image.stem, flipped, side))
        return {}, 1.0

    monkeypatch.setattr(detection, "model_input", watched)
    recipe = dataclasses.replace(SHRUNK, train_sides=(96, 120))
    for i in range(5):
        assert len(batch(train, recipe, seed=0, iteration=i)) == 2
    assert len({(stem, flipped) for stem, flipped, _ in seen}) == 10
    assert {side for *_, side in seen} == {96, 120}
    first = seen[:]
    seen.clear()
    for i in range(5, 10):
        batch(train, recipe, seed=0, iteration=i)
    assert len({(stem, flipped) for stem, flipped, _ in seen}) == 10
    assert [s[:2] for s in seen] != [s[:2] for s in first]


def test_data_digests_what_is_read(tmp_path: Path) -> None:
    devkit = make_devkit(tmp_path, train=3, test=2)
    whole = data(SHRUNK, devkit)
    assert whole.images == {"train": 3, "test": 2}
    assert whole.split == "trainval → test"
    assert data(dataclasses.replace(SHRUNK, train_images=1), devkit).images == {"train": 1, "test": 2}
    for path in (voc.annotation_path(devkit / "VOC2007", "000004"), devkit / "VOC2007/ImageSets/Main/test.txt"):
        before = data(SHRUNK, devkit).sha256
        path.write_text(path.read_text() + "\n")
        assert data(SHRUNK, devkit).sha256 != before
    with pytest.raises(Missing, match=r"val\.txt"):
        data(dataclasses.replace(SHRUNK, test_split="val"), devkit)


# ---- scoring ----


def annotation(*objects: tuple[str, tuple[float, ...], bool]) -> voc.Annotation:
    names, boxes, difficult = zip(*objects, strict=True)
    labels = np.array([voc.CLASSES.index(n) for n in names])
    return voc.Annotation(100, 100, np.array(boxes, float), labels, np.array(difficult), np.zeros(len(names), bool))


def detections(*rows: tuple[int, str, float, tuple[float, ...]]) -> Detections:
    images, names, scores, boxes = zip(*rows, strict=True)
    labels = np.array([voc.CLASSES.index(n) for n in names])
    return Detections(np.array(images), labels, np.array(scores), np.array(boxes, float))


def test_a_duplicate_is_false_a_difficult_object_is_ignored_and_half_is_enough() -> None:
    truths = [annotation(("cat", (0, 0, 10, 10), False), ("cat", (50, 50, 60, 60), True), ("dog", (0, 0, 9, 9), True))]
    half, hit = (0, 0, 10, 5), (0, 0, 10, 10)
    hard = (0, "cat", 0.9, (50.0, 50.0, 60.0, 60.0))
    assert average_precision(detections(hard, hard, (0, "cat", 0.8, half)), truths)["cat"] == (1.0, 1.0)
    assert average_precision(detections((0, "cat", 0.8, (0, 0, 10, 4.99))), truths)["cat"] == (0.0, 0.0)
    assert average_precision(detections((0, "dog", 0.8, hit)), truths)["cat"] == (0.0, 0.0)
    truths.append(annotation(("cat", (0, 0, 10, 10), False)))
    found = detections((0, "cat", 0.9, hit), (0, "cat", 0.8, half), (1, "cat", 0.7, hit))
    eleven, area = average_precision(found, truths)["cat"] or (0, 0)
    assert eleven == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert area == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(found, truths)["dog"] is None  # only a difficult one
    assert average_precision(found, truths)["bus"] is None


def test_limits_and_suppression() -> None:
    far, near = (50, 50, 60, 60), (0, 0, 10, 9)
    found = detections(
        (0, "cat", 0.5, (0, 0, 10, 10)), (0, "cat", 0.9, near), (0, "dog", 0.3, (0, 0, 10, 10)),
        (1, "cat", 0.4, (0, 0, 10, 10)), (0, "cat", 0.2, far), (0, "cat", 0.1, (0, 0, 2, 9)),
    )  # fmt: skip
    assert suppressed(found, nms=0.3).scores.tolist() == [0.9, 0.3, 0.2, 0.1, 0.4]
    assert suppressed(found, nms=0.1).scores.tolist() == [0.9, 0.3, 0.2, 0.4]
    assert limited(found, 2).scores.tolist() == [0.5, 0.9, 0.3]
    nothing = found[np.zeros(6, dtype=bool)]
    assert len(suppressed(limited(nothing, 2), nms=0.3).scores) == 0


def test_candidates_are_limited_per_image_and_class_before_suppression() -> None:
    predictor = built(dataclasses.replace(SHRUNK, most_per_image=3)).roi_heads.box_predictor
    given = Instances((100, 100), proposal_boxes=Boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]] * 8)))
    logits = torch.randn(8, 21, generator=torch.Generator().manual_seed(0))
    ((out,), _) = predictor.inference((logits, torch.zeros(8, 80)), [given])
    best = logits.softmax(1)
    for label in range(20):
        kept = out.scores[out.pred_classes == label]
        assert torch.equal(kept.sort().values, best[:, label].sort().values[-3:])
    given.proposal_boxes.tensor[:4] += 32
    given.proposal_boxes.tensor[0] += 5  # less than half a cell
    once = distinct(given)
    assert once.proposal_boxes.tensor[:, 0].tolist() == [37, 0]
    assert once.copies.tolist() == [4, 4]


def test_proposals_that_coincide_are_computed_once_and_counted_each() -> None:
    """FR's im_detect: scores and boxes of the first of them are mapped back to all, and fill the limits before NMS."""
    corners = [0.0, 208.0, 1.0, 400.0, 2.0, 209.0]  # 3, 2 and 1 in the same cells of 16
    boxes = torch.tensor([[x, x, x + 90, x + 90] for x in corners])
    given = Instances((600, 600), proposal_boxes=Boxes(boxes))
    once = distinct(given)
    assert once.proposal_boxes.tensor[:, 0].tolist() == [0, 208, 400]
    assert once.copies.tolist() == [3, 2, 1]
    draws = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(3, 21, generator=draws), torch.randn(3, 80, generator=draws) / 10
    back = [0, 1, 0, 2, 0, 1]
    whole = Instances((600, 600), proposal_boxes=Boxes(once.proposal_boxes.tensor[back]))
    for most in (100, 4):
        predictor = built(dataclasses.replace(SHRUNK, most_per_image=most)).roi_heads.box_predictor
        ((mapped,), _) = predictor.inference((logits, deltas), [once])
        ((expected,), _) = predictor.inference((logits[back], deltas[back]), [whole])
        assert len(mapped) == 20 * min(most, 6)
        for label in range(20):
            rows = [torch.cat([o.scores[:, None], o.pred_boxes.tensor], 1)[o.pred_classes == label]
                    for o in (mapped, expected)]  # fmt: skip
            assert torch.equal(*(found[found[:, 0].argsort(stable=True)] for found in rows))


def test_chance_is_what_the_wrong_images_earn() -> None:
    names = [voc.CLASSES[i % 20] for i in range(43)]
    truths = [annotation((name, (10, 10, 60, 60), False)) for name in names]
    seen = detections(*((i, name, 0.9, (10, 10, 60, 60)) for i, name in enumerate(names)))
    assert [ap[0] for ap in average_precision(seen, truths).values() if ap] == [1.0] * 20
    assert chance(seen, truths) == (0.0, 0.0)  # no other image of the pairings shows the same class
    blind = detections(*((i, "cat", 0.9, (10, 10, 60, 60)) for i in range(9)))
    assert chance(blind, [annotation(("cat", (10, 10, 60, 60), False))] * 9) == (1.0, 0.0)  # nothing had to be seen
    wide = dataclasses.replace(truths[0], width=200, boxes=np.array([[20.0, 10.0, 120.0, 60.0]]))
    halves = detections((0, "aeroplane", 0.9, (20, 10, 120, 60)), (1, "aeroplane", 0.9, (10, 10, 60, 60)))
    assert chance(halves, [wide, truths[0]]) == (1.0, 0.0)  # stretched to the other size
    truths = [dataclasses.replace(truths[0], boxes=np.zeros((0, 4)), labels=np.zeros(0, np.int64),
                                  difficult=np.zeros(0, np.bool_))] * 6  # fmt: skip
    truths[3] = annotation(("cat", (10, 10, 60, 60), False))  # one of the five pairings shows it
    assert chance(detections((0, "cat", 0.9, (10, 10, 60, 60))), truths) == pytest.approx((0.2, 0.4))


def test_rates_limits_and_suppression_are_the_recipes(
    devkit: Path, score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, limits, overlaps = [], [], []
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(detection, "save_checkpoint", lambda _, state: groups.append(state["optimizer"]))
    monkeypatch.setattr(detection, "limited", lambda found, most: limits.append(most) or limited(found, most))
    monkeypatch.setattr(detection, "suppressed", lambda found, nms: overlaps.append(nms) or suppressed(found, nms=nms))
    score(devkit, dataclasses.replace(SHRUNK, iterations=5, rate=1e-4, rate_every=2, nms=0.45, most_per_class=3))
    weights, biases = ([round(g["param_groups"][k]["lr"], 12) for g in groups] for k in (0, 1))
    assert weights == [1e-4, 1e-4, 1e-5, 1e-5, 1e-6]
    assert biases == [2 * rate for rate in weights]
    assert [g["weight_decay"] for g in groups[0]["param_groups"]] == [5e-4, 0.0]
    assert {g["momentum"] for g in groups[0]["param_groups"]} == {0.9}
    assert (limits, overlaps) == ([3 * 5], [0.45])


# ---- the whole ----


def test_it_learns_a_handful_of_images(devkit: Path, score: Callable[..., Any]) -> None:
    outcome = score(devkit, dataclasses.replace(SHRUNK, iterations=150, rate_every=120))
    assert outcome.metrics["map_11point"] >= 0.95
    assert outcome.metrics["map_11point"] > 2 * outcome.metrics["chance_map_11point"]
    assert set(outcome.metrics) == {"map_11point", "map_area", "chance_map_11point", "chance_map_11point_spread"}
    assert {name for name, ap in outcome.per_class.items() if ap is not None} == set(SHAPES)
    assert list(outcome.per_class) == list(voc.CLASSES)
    assert (outcome.receipt.loaded, outcome.receipt.expected) == (10, 10)


class Killed(Exception):
    pass


def test_killed_runs_end_with_the_same_numbers(
    devkit: Path, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = score(devkit, work=tmp_path / "straight")
    assert score(devkit, work=tmp_path / "other seed", seed=1).metrics != straight.metrics
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    steps: list[int] = []

    def killed_after_two(seed: int, *key: str | int) -> None:
        reseed(seed, *key)
        if key != ("detection", "init"):
            steps.append(int(key[-1]))
            if len(steps) % 3 == 0:
                raise Killed

    monkeypatch.setattr(detection, "reseed", killed_after_two)
    with pytest.raises(Killed):
        score(devkit)
    with pytest.raises(Killed):
        score(devkit)
    assert steps == [0, 1, 2, 2, 3, 4]
    monkeypatch.setattr(detection, "detect", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        score(devkit)
    assert steps[6:] == [4, 5]
    monkeypatch.undo()
    monkeypatch.setattr(detection, "reseed", lambda *_: pytest.fail("trained again after the end of training"))
    ended = score(devkit)
    assert ended == straight
    other = torch.load(tmp_path / "straight" / "checkpoint.pt", weights_only=True)["model"]
    mine = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(mine[name], tensor) for name, tensor in other.items())


def test_a_checkpoint_of_another_recipe_is_not_continued(
    devkit: Path, score: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    score(devkit, dataclasses.replace(SHRUNK, iterations=1))
    capsys.readouterr()
    score(devkit, dataclasses.replace(SHRUNK, iterations=1, rate=1e-4))
    shown = capsys.readouterr()
    assert "starting over" in shown.err
    assert shown.out == ""


def test_of_a_finished_training_the_test_alone_is_run(
    devkit: Path, score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(SHRUNK, iterations=1, conditioned=True, trunk_rate=0.3)
    whole = score(devkit, recipe)
    for name in ("prepare", "batch"):
        monkeypatch.setattr(detection, name, lambda *_, **__: pytest.fail("trained again"))
    assert score(devkit, recipe) == whole


def test_a_split_of_one_image(tmp_path: Path, score: Callable[..., Any]) -> None:
    devkit = make_devkit(tmp_path, train=1)
    outcome = score(devkit, dataclasses.replace(SHRUNK, iterations=2))
    assert 0 <= outcome.metrics["map_11point"] <= 1


@pytest.mark.parametrize("rate", [1e38, 1e12])
def test_a_last_update_that_spoils_the_weights_is_no_result(
    rate: float, devkit: Path, score: Callable[..., Any]
) -> None:
    """Not finite weights, and finite ones whose predictions are not: neither is a mAP of 0."""
    with pytest.raises(Failed, match="training diverged"):
        score(devkit, dataclasses.replace(SHRUNK, rate=rate, iterations=1))


def test_a_diverging_loss_names_the_iteration_and_the_remedy(devkit: Path, score: Callable[..., Any]) -> None:
    with pytest.raises(Failed, match=r"iteration [1-5]\b.*encoder") as raised:
        score(devkit, dataclasses.replace(SHRUNK, rate=1e12))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("<width>128<", "<width>129<"), "129×96, 000001.jpg is 128×96"),
        (lambda t: t.replace("<xmax>", "<xmax>9"), "outside its 128×96 image"),
        (lambda t: t[:-20], "broken annotation"),
    ],
)
def test_a_wrong_annotation_is_named(
    tmp_path: Path, score: Callable[..., Any], change: Callable[[str], str], message: str
) -> None:
    devkit = make_devkit(tmp_path, train=2)
    path = voc.annotation_path(devkit / "VOC2007", "000001")
    path.write_text(change(path.read_text()))
    with pytest.raises(Failed, match=r"000001\.xml: .*" + message):
        score(devkit)


def test_a_broken_image_is_named(tmp_path: Path, score: Callable[..., Any]) -> None:
    devkit = make_devkit(tmp_path, train=2)
    path = voc.image_path(devkit / "VOC2007", "000001")
    path.write_bytes(b"no image")
    with pytest.raises(Failed, match=r"000001\.jpg: corrupt"):
        score(devkit)
    path.unlink()
    with pytest.raises(Missing, match=r"000001\.jpg: no such image"):
        score(devkit)


def test_nothing_to_find_is_an_error(tmp_path: Path, score: Callable[..., Any]) -> None:
    devkit = make_devkit(tmp_path, train=1)
    path = voc.annotation_path(devkit / "VOC2007", "000000")
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    with pytest.raises(Failed, match="test"):
        score(devkit, dataclasses.replace(SHRUNK, iterations=1))
