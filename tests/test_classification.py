"""VOC07 classification: the real thing, shrunk."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.alexnet import mean_rgb
from pretrain.files import Failed, Missing
from pretrain.randomness import generator
from pretrain.rescale import calibrate
from transfer import classification, voc
from transfer.classification import (
    RECIPES,
    Recipe,
    build,
    data,
    evaluate,
    multilabel_loss,
    random_crops,
)
from transfer.head import Head

SMALL = dataclasses.replace(RECIPES["tiny"], width=64, crops=2, iterations=6, batch=4)
CPU = torch.device("cpu")


def run(encoder, tiny, work, recipe=SMALL, seed=0):
    work.mkdir(exist_ok=True, parents=True)
    return evaluate(encoder, recipe, tiny / "VOCdevkit", seed=seed, work=work, device=CPU)


def test_paper_recipe_is_protocol_section_4():
    r = RECIPES["paper"]
    assert (r.train_split, r.test_split, r.train_images, r.test_images) == ("trainval", "test", None, None)
    assert (r.rate, r.rate_factor, r.rate_step, r.iterations, r.batch) == (1e-3, 0.5, 10_000, 80_000, 16)
    assert (r.momentum, r.decay, r.clip, r.bias_rate, r.bias_decay) == (0.9, 1e-6, 10.0, 2.0, 1.0)
    assert (r.crop, r.scale, r.crops, r.width, r.calibrated) == (227, (0.5, 2.0), 10, 4096, False)


@pytest.mark.parametrize("base", ["paper", "quick"])
def test_variants_differ_in_what_is_trained_alone(base):
    for trained in ("fc6-8", "fc8"):
        variant = RECIPES[f"{base}-{trained}"]
        assert dataclasses.replace(variant, name=base, trained="all") == RECIPES[base]
        assert variant.trained == trained
        assert variant.sha256 != RECIPES[base].sha256


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("trained", ["all", "fc6-8", "fc8"])
def test_what_is_not_trained_stays_as_it_was(trained, calibrated, encoder, tiny, tmp_path):
    recipe = dataclasses.replace(SMALL, trained=trained, iterations=2, decay=0.1, calibrated=calibrated)
    run(encoder, tiny, tmp_path, recipe)
    before = build(encoder, recipe, seed=0, device=CPU)[0].state_dict()
    after = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    expected = {"all": {"trunk", "head", "fc8"}, "fc6-8": {"head", "fc8"}, "fc8": {"fc8"}}[trained]
    assert changed == expected | ({"head"} if calibrated else set())  # which is prepared


def test_the_encoder_is_inside_and_the_head_is_fresh(encoder):
    one, receipt = build(encoder, SMALL, seed=0, device=CPU)
    two, _ = build(encoder, SMALL, seed=1, device=CPU)
    assert (receipt.loaded, receipt.expected) == (10, 10)
    for name, tensor in encoder.tensors.items():
        assert torch.equal(one.state_dict()[f"trunk.{name}"], tensor)
        assert torch.equal(two.state_dict()[f"trunk.{name}"], tensor)
    for name in ("head.fc6.weight", "head.fc7.weight", "fc8.weight"):
        assert not torch.equal(one.state_dict()[name], two.state_dict()[name])


def test_full_size_head_is_caffenets(encoder):
    model, _ = build(encoder, RECIPES["paper"], seed=0, device=CPU)
    sizes = {name: sum(p.numel() for p in layer.parameters()) for name, layer in model.head.named_children()}
    assert {name: size for name, size in sizes.items() if size} == {"fc6": 37_752_832, "fc7": 16_781_312}
    assert model.fc8.weight.shape == (20, 4096)
    assert math.isclose(model.head.fc6.weight.std().item(), 0.005, rel_tol=0.01)
    assert math.isclose(model.fc8.weight.std().item(), 0.01, rel_tol=0.01)
    assert (model.head.fc6.bias == 1).all()
    assert torch.allclose(model.fc8.bias, torch.tensor(0.1))


def test_overfits_a_handful(encoder, tiny, tmp_path):
    """Labels, crops and scoring line up: trained and tested on the same eight images."""
    recipe = dataclasses.replace(
        SMALL,
        iterations=80,
        batch=8,
        train_images=8,
        test_split="trainval",
        test_images=8,
        rate_step=1000,
        scale=(2.0, 2.0),
        width=512,
    )
    outcome = run(encoder, tiny, tmp_path, recipe)
    assert outcome.metrics["map_sklearn"] >= 0.95
    assert 0 < outcome.metrics["chance_map_sklearn_spread"] < outcome.metrics["chance_map_sklearn"] < 0.6


def test_stopped_and_continued_is_the_same(encoder, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    whole = run(encoder, tiny, tmp_path / "whole")
    original = classification._step
    calls = []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(classification, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(encoder, tiny, tmp_path / "parts")
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["iteration"] == 3
    parts = run(encoder, tiny, tmp_path / "parts")
    assert len(calls) == 4 + 3, "the iterations before the checkpoint were run again"
    assert parts == whole
    assert run(encoder, tiny, tmp_path / "other", seed=1).metrics != whole.metrics


def test_of_a_finished_training_the_test_alone_is_run(encoder, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(classification, "PREPARED_ON", 4)
    recipe = dataclasses.replace(SMALL, iterations=2, calibrated=True, trunk_rate=0.3)
    whole = run(encoder, tiny, tmp_path, recipe)
    for name in ("_decode", "_prepare", "_step"):
        monkeypatch.setattr(classification, name, lambda *_, **__: pytest.fail("trained again"))
    assert run(encoder, tiny, tmp_path, recipe) == whole


def test_a_loss_that_is_not_finite_stops_the_run(encoder, tiny, tmp_path):
    with pytest.raises(Failed, match=r"loss is (nan|inf) at iteration \d"):
        run(encoder, tiny, tmp_path, dataclasses.replace(SMALL, rate=1e30, clip=1e30, iterations=20))


def test_a_last_update_that_spoils_the_weights_is_no_result(encoder, tiny, tmp_path):
    """The loss of one iteration is finite; what it does to the weights, or to the scores, is not."""
    with pytest.raises(Failed, match="training diverged"):
        run(encoder, tiny, tmp_path, dataclasses.replace(SMALL, rate=1e30, clip=1e30, iterations=1))


def test_data_changes_with_every_file(tiny, tmp_path):
    import shutil

    devkit = shutil.copytree(tiny / "VOCdevkit", tmp_path / "VOCdevkit")
    before = data(SMALL, devkit)
    assert before.images == {"train": 24, "test": 12}
    xml = sorted((devkit / "VOC2007" / "Annotations").glob("*.xml"))[0]
    xml.write_text(xml.read_text().replace("Unspecified", "Left"))
    assert data(SMALL, devkit).sha256 != before.sha256
    xml.unlink()
    with pytest.raises(Missing, match=xml.name):
        data(SMALL, devkit)


def test_a_truncated_image_is_named(encoder, tiny, tmp_path):
    import shutil

    root = shutil.copytree(tiny, tmp_path / "tiny")
    image = sorted((root / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("*.jpg"))[0]
    image.write_bytes(image.read_bytes()[:-500])
    with pytest.raises(Failed, match=f"{image.name}: corrupt or truncated"):
        run(encoder, root, tmp_path / "work")


def one_image(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_crops_are_the_windows_of_the_protocol():
    """A ramp image reads back where each crop was taken: its scale, its position, its mirror."""
    height, width = 300, 400
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = one_image(np.stack([columns / width * 250, rows / height * 250, np.zeros_like(rows)], 2).astype(np.uint8))
    recipe = Recipe(name="x")
    crops = random_crops([ramp] * 400, recipe, generator(0)) + mean_rgb()
    left, right = crops[:, 0, :, 20].mean(1) * width / 250, crops[:, 0, :, 206].mean(1) * width / 250
    window = (right - left).abs() / 186 * 227  # source pixels a crop spans
    scale = window / 227
    assert 0.48 < scale.min() < 0.55
    assert 1.25 < scale.max() < 1.34  # min(2, 300/227) = 1.32
    assert abs(float(scale.mean()) - (0.5 + 300 / 227) / 2) < 0.04
    assert 0.4 < (right < left).float().mean() < 0.6
    middle = (crops[:, 0].mean((1, 2)) * width / 250, crops[:, 1].mean((1, 2)) * height / 250)
    for centre, side in zip(middle, (width, height), strict=True):
        assert (centre - window / 2 > -2).all()
        assert (centre + window / 2 < side + 2).all()
        assert abs(float(centre.mean()) - side / 2) < side * 0.04


def test_a_crop_does_not_depend_on_its_neighbours():
    """Images of other sizes in the batch pad it; the crop stays the same."""
    random = np.random.default_rng(0)
    small = one_image(random.integers(0, 256, (130, 120, 3), dtype=np.uint8))
    large = one_image(random.integers(0, 256, (400, 500, 3), dtype=np.uint8))
    recipe = Recipe(name="x")
    alone = random_crops([small], recipe, generator(3))
    again = random_crops([small, small], recipe, generator(3))
    beside = random_crops([small, large], recipe, generator(3))
    assert alone.shape == (1, 3, 227, 227)
    torch.testing.assert_close(again[0], beside[0], atol=0.05, rtol=0)


def test_full_scale_crop_is_a_bilinear_resize():
    pixels = np.random.default_rng(0).integers(0, 256, (113, 113, 3), dtype=np.uint8)
    recipe = Recipe(name="x", scale=(2.0, 2.0))
    crops = random_crops([one_image(pixels)] * 8, recipe, generator(0)) + mean_rgb()
    want = torch.nn.functional.interpolate(one_image(pixels)[None].float(), size=(227, 227), mode="bilinear")[0]
    for crop in crops:
        closest = min((crop - candidate).abs().max() for candidate in (want, want.flip(2)))
        assert closest < 0.05


def test_loss_ignores_ambiguous_labels():
    scores = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    labels = torch.tensor([[1, 0], [-1, 1]])
    want = math.log(2) + math.log(1 + math.e) + math.log(1 + math.e)
    assert math.isclose(float(multilabel_loss(scores, labels)), want / 2, rel_tol=1e-6)


def test_presence_of_difficult_objects():
    def annotation(labels, difficult):
        flags = np.array(difficult, dtype=bool)
        return voc.Annotation(9, 9, np.zeros((len(labels), 4)), np.array(labels, dtype=np.int64), flags, flags)

    found = voc.presence([annotation([0, 1, 1], [True, True, False]), annotation([], [])])
    assert found[0, :3].tolist() == [0, 1, -1]
    assert (found[1] == -1).all()


def test_calibration_leaves_no_plateau():
    torch.manual_seed(0)
    head, x = Head(width=64).eval(), torch.rand(40, 256, 6, 6) + 1
    calibrate((head.fc6, head.fc7), lambda: head(x))
    out = head.fc7(torch.relu(head.fc6(x.flatten(1))))
    torch.testing.assert_close(out.mean(0), torch.full((64,), 0.1), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(64), atol=1e-3, rtol=0)


def test_a_one_image_split(encoder, tiny, tmp_path):
    recipe = dataclasses.replace(SMALL, train_images=1, test_images=1, iterations=2)
    metrics = run(encoder, tiny, tmp_path, recipe).metrics
    assert 0 < metrics["map_sklearn"] <= 1


def test_other_image_modes_decode(tmp_path):
    for mode in ("L", "CMYK", "P", "RGBA"):
        path = tmp_path / f"{mode}.png" if mode in "LPRGBA" else tmp_path / f"{mode}.jpg"
        Image.new(mode, (5, 4)).save(path)
        assert voc.read_image(path).shape == (4, 5, 3)
