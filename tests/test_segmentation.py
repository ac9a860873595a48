"""Segmentation through the real mmengine and mmsegmentation, with the real recipe shrunk."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from scipy.io import savemat

from pretrain.alexnet import AlexNet, Encoder, read_encoder, save_encoder
from pretrain.checkpoints import load_checkpoint
from pretrain.files import Failed, Missing
from transfer import segmentation, voc
from transfer.fcn import Recipe, build_model, crop_offset
from transfer.iu import LABELS, histogram, scores
from transfer.segmentation import RECIPES, build_runner, data, evaluate

CPU = torch.device("cpu")
SHRUNK = dataclasses.replace(RECIPES["tiny"], name="test", width=64, rate=5e-3, accumulate=2, iterations=3)
NARROW = dataclasses.replace(RECIPES["paper"], width=8)
COLOURS = {1: (230, 30, 30), 5: (30, 60, 230), 12: (240, 230, 40)}


def make_devkit(root: Path, *, images: int, size: tuple[int, int] = (96, 128)) -> Path:
    """A VOC2012 whose images each hold one large coloured rectangle with a void border on grey."""
    year = root / "VOCdevkit" / "VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (year / folder).mkdir(parents=True)
    ids = [f"2012_{i:06d}" for i in range(images)]
    for i, image_id in enumerate(ids):
        (label, colour), (height, width) = list(COLOURS.items())[i % 3], size
        pixels, mask = np.full((*size, 3), 110, np.uint8), np.zeros(size, np.uint8)
        left = 0 if i % 2 else width // 2
        box = np.s_[: height - 8 * (i // 3), left : left + width // 2]
        pixels[box], mask[box] = colour, label
        mask[:2] = voc.VOID
        Image.fromarray(pixels).save(voc.image_path(year, image_id), quality=95)
        Image.fromarray(mask).save(voc.mask_path(year, image_id))
    for split in ("train", "val", "seg11valid"):
        (year / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root / "VOCdevkit"


def make_sbd(devkit: Path, mask: np.ndarray[Any, Any]) -> None:
    """An SBD of one train image beside the devkit."""
    folder = devkit.parent / "benchmark_RELEASE" / "dataset"
    for name in ("img", "cls"):
        (folder / name).mkdir(parents=True)
    (folder / "train.txt").write_text("2008_000002\n")
    Image.new("RGB", (60, 50), (90, 120, 150)).save(folder / "img" / "2008_000002.jpg")
    savemat(folder / "cls" / "2008_000002.mat", {"GTcls": {"Segmentation": mask}})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A random encoder, through its file."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(3)
    save_encoder(path, AlexNet(), {"method": "random", "variant": "", "supervision": "initialization"})
    return read_encoder(path)


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Five images, trained and tested on."""
    return make_devkit(tmp_path / "data", images=5)


def trained(encoder: Encoder, devkit: Path, work: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The model's tensors after a run of SHRUNK with `changes`."""
    seed = changes.pop("seed", 0)
    recipe = dataclasses.replace(SHRUNK, **changes)
    evaluate(encoder, recipe, devkit, seed=seed, work=work, device=CPU)
    state = load_checkpoint(work / "checkpoint.pt")
    assert state is not None
    model: dict[str, torch.Tensor] = state["model"]
    return model


def test_encoder_reaches_the_network_and_the_rest_is_fresh(encoder: Encoder, devkit: Path, tmp_path: Path) -> None:
    """At rate 0 the whole run through mmengine leaves the ten tensors as in the file."""
    one, two = (trained(encoder, devkit, tmp_path / f"{s}", seed=s, rate=0.0, iterations=1) for s in (0, 1))
    for name, tensor in encoder.tensors.items():
        assert torch.equal(one[f"backbone.trunk.{name}"], tensor), name
    for name in ("fc6", "fc7"):
        assert not torch.equal(one[f"backbone.{name}.weight"], two[f"backbone.{name}.weight"])
    assert not one["decode_head.conv_seg.weight"].any()


def test_overfits_a_handful(encoder: Encoder, devkit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = dataclasses.replace(SHRUNK, width=128, iterations=150, background_weight=1.0)
    outcome = evaluate(encoder, recipe, devkit, seed=0, work=tmp_path / "work", device=CPU)
    assert outcome.metrics["mean_iu"] >= 0.85, outcome.metrics
    assert outcome.metrics["chance_mean_iu"] < 0.25
    assert outcome.receipt.loaded == outcome.receipt.expected == 10
    present = {name for name, iu in outcome.per_class.items() if iu is not None}
    assert present >= {"background", *(LABELS[i] for i in COLOURS)}
    assert list(outcome.per_class) == list(LABELS)
    assert capfd.readouterr().out == ""
    assert {p.name for p in tmp_path.iterdir()} == {"data", "work"}


def test_interrupted_run_ends_with_the_same_numbers(
    encoder: Encoder, devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an update, then while testing: bit for bit the undisturbed run."""
    recipe = dataclasses.replace(SHRUNK, iterations=6, dropout=0.5)

    def run(work: str) -> tuple[Any, dict[str, torch.Tensor]]:
        outcome = evaluate(encoder, recipe, devkit, seed=1, work=tmp_path / work, device=CPU)
        state = load_checkpoint(tmp_path / work / "checkpoint.pt")
        assert state is not None
        return outcome, state["model"]

    undisturbed, expected = run("undisturbed")
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    images: list[int] = []
    for stop, owner, method in (
        (5, segmentation.Step, "before_train_iter"),
        (9, segmentation.Step, "before_train_iter"),
        (2, segmentation.Score, "process"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, stopping(getattr(owner, method), stop, images))
            with pytest.raises(KeyboardInterrupt):
                run("disturbed")
    with monkeypatch.context() as patch:
        patch.setattr(segmentation.Step, "before_train_iter", stopping(lambda *_, **__: None, 0, images))
        outcome, model = run("disturbed")  # nothing is trained again
    assert images == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]
    assert outcome == undisturbed
    assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())


def test_of_a_finished_training_the_test_alone_is_run(
    encoder: Encoder, devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(SHRUNK, iterations=2, prepared=True, trunk_rate=0.3, score_every=1)
    whole = evaluate(encoder, recipe, devkit, seed=0, work=tmp_path / "work", device=CPU)
    for owner, name in ((segmentation, "fitted"), (segmentation.Runner, "train")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("trained again"))
    assert evaluate(encoder, recipe, devkit, seed=0, work=tmp_path / "work", device=CPU) == whole


def test_the_best_score_on_the_way_is_an_extra(
    encoder: Encoder, devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headline is the last one; looking on the way changes no number, nor does an interruption."""
    plain = dataclasses.replace(SHRUNK, iterations=6, dropout=0.5, rate=2e-2)
    looked = dataclasses.replace(plain, score_every=2)
    kept: list[dict[int, float]] = []
    save = segmentation.save_checkpoint
    monkeypatch.setattr(segmentation, "save_checkpoint", lambda p, s: kept.append(dict(s["history"])) or save(p, s))

    def run(recipe: Recipe, work: str) -> Any:
        return evaluate(encoder, recipe, devkit, seed=1, work=tmp_path / work, device=CPU)

    never = run(dataclasses.replace(looked, iterations=1), "never")  # ends before the first look
    assert never.metrics["best_mean_iu"] == never.metrics["mean_iu"]
    without, whole = run(plain, "plain"), run(looked, "looked")
    assert {k: v for k, v in whole.metrics.items() if k != "best_mean_iu"} == without.metrics
    assert set(kept[-1]) == {2, 4}
    assert whole.metrics["best_mean_iu"] == max(*kept[-1].values(), whole.metrics["mean_iu"])
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch:
        patch.setattr(segmentation.Step, "before_train_iter", stopping(segmentation.Step.before_train_iter, 10, []))
        with pytest.raises(KeyboardInterrupt):
            run(looked, "parts")
    assert run(looked, "parts") == whole  # what was scored before the interruption is not forgotten by it


def stopping(method: Callable[..., None], stop: int, seen: list[int]) -> Callable[..., None]:
    """`method`, which raises KeyboardInterrupt at batch `stop`; `seen` collects the training ones."""
    calls = iter(range(stop + 1))

    def replacement(*args: Any, batch_idx: int | None = None, **kwargs: Any) -> None:
        at = next(calls) if batch_idx is None else batch_idx
        if batch_idx is not None:
            seen.append(at)
            kwargs["batch_idx"] = batch_idx
        if at >= stop:
            raise KeyboardInterrupt
        method(*args, **kwargs)

    return replacement


def test_another_runs_checkpoint_is_not_continued(encoder: Encoder, devkit: Path, tmp_path: Path) -> None:
    fresh = trained(encoder, devkit, tmp_path / "fresh", seed=5)
    trained(encoder, devkit, tmp_path / "used", seed=4)
    again = trained(encoder, devkit, tmp_path / "used", seed=5)
    assert all(torch.equal(again[name], tensor) for name, tensor in fresh.items())


def test_chance_is_the_score_of_background_everywhere() -> None:
    truth = np.array([[0, 0, 0, 5], [0, 0, voc.VOID, 5]])
    assert scores(histogram(truth, np.full_like(truth, 7)))["chance_mean_iu"] == pytest.approx(5 / 7 / 2)
    only = scores(histogram(truth, np.zeros_like(truth)))
    assert only["mean_iu"] == only["chance_mean_iu"]
    assert only["frequency_weighted_iu"] == pytest.approx(5 / 7 * 5 / 7)


def test_sizes_inside_the_network_are_caffes() -> None:
    """Protocols 6.1: 500 → 173, 86, 43, 43, 21, 16, 543, and 18 cropped off."""
    with torch.device("meta"):
        model = build_model(NARROW)
    sizes = []
    layers = (*model.backbone.trunk.convs(), model.backbone.fc6, model.decode_head.upscore)
    for layer in layers:
        layer.register_forward_hook(lambda _, x, y: sizes.append((x[0].shape[-1], y.shape[-1])))
    model.decode_head(model.backbone(torch.empty(1, 3, 500, 500, device="meta")))
    assert sizes == [(500, 173), (86, 86), (43, 43), (43, 43), (43, 43), (21, 16), (16, 543)]
    assert model.decode_head.offset == crop_offset(100, 0) == 18


@pytest.mark.parametrize("name", ["paper", "tiny", "quick"])
def test_every_input_size_is_covered(name: str) -> None:
    with torch.device("meta"):
        model = build_model(dataclasses.replace(RECIPES[name], width=8))
    for height in (*range(1, 70), *range(120, 160), 281, 375, 499, 500):
        out = model.decode_head(model.backbone(torch.empty(1, 3, height, height + 1, device="meta")))
        assert out.shape == (1, 21, height, height + 1)


@pytest.mark.parametrize(("name", "side"), [("paper", 91), ("tiny", 59)])
def test_output_is_aligned_with_the_input(name: str, side: int) -> None:
    """Mirrored input through mirrored kernels gives the mirrored output, only if the crop is centred.

    `side` is one at which every stride divides evenly, so that the network itself is symmetric.
    """
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(RECIPES[name], width=8, fc_std=(0.01, 0.3))).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    images = torch.randn(1, 3, side, side) * 60
    with torch.no_grad():
        straight = model.decode_head(model.backbone(images))
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.copy_(layer.weight.flip(3))
        mirrored = model.decode_head(model.backbone(images.flip(3))).flip(3)
    assert straight.std(dim=3).mean() > 1e-3
    torch.testing.assert_close(mirrored, straight, rtol=1e-4, atol=1e-5)


def test_upscaling_is_bilinear() -> None:
    """A constant stays constant, an impulse becomes a tent around its place, a ramp stays a ramp."""
    up = build_model(NARROW).decode_head.upscore
    with torch.no_grad():
        flat, ramp = up(torch.ones(1, 21, 4, 5)), up(torch.arange(5.0).expand(1, 21, 4, 5))
        impulse = up(F.one_hot(torch.tensor(12), 25).view(1, 1, 5, 5).float().repeat(1, 21, 1, 1))
    inside = flat[..., 31:-31, 31:-31]
    assert torch.equal(inside, torch.ones_like(inside))
    torch.testing.assert_close(ramp[0, 0, 40, 31:-31], torch.arange(0, 4 + 1 / 64, 1 / 32))
    peak = 2 * 32 + 31
    assert (impulse[0, 20] == 1).nonzero().tolist() == [[peak, peak]]
    assert impulse[0, 20, peak, peak + 16] == impulse[0, 20, peak - 16, peak] == 0.5


@pytest.mark.parametrize("background", [1.0, 0.25])
def test_loss_is_the_mean_over_pixels_that_are_not_void(background: float) -> None:
    model = build_model(dataclasses.replace(NARROW, background_weight=background))
    logits, weights = torch.randn(1, 21, 6, 7), torch.ones(21)
    weights[0] = background
    truth = torch.randint(3, (1, 6, 7))
    truth[0, :2] = voc.VOID
    sample = SegDataSample(gt_sem_seg=PixelData(data=truth))
    loss = model.decode_head.loss_by_feat(logits, [sample])["loss_ce"]
    torch.testing.assert_close(loss, F.cross_entropy(logits[..., 2:, :], truth[:, 2:], weight=weights))
    sample.gt_sem_seg.data.fill_(voc.VOID)
    assert model.decode_head.loss_by_feat(logits, [sample])["loss_ce"] == 0


def test_zero_fillers_are_a_dead_network_and_ours_is_not(
    encoder: Encoder, devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protocols 6.2. Both start at ln 21; with fc6 at zero nothing below the score layer ever moves."""
    losses: list[float] = []
    step = segmentation.Step.after_train_iter

    def record(*args: Any, **kwargs: Any) -> None:
        losses.append(kwargs["outputs"]["loss"].item())
        step(*args, **kwargs)

    monkeypatch.setattr(segmentation.Step, "after_train_iter", record)
    run = {"iterations": 8, "decay": 0.0, "score_bias_rate": 0.0, "prepared": False, "trunk_rate": None}
    dead = trained(encoder, devkit, tmp_path / "dead", fc_std=(0.0, 0.0), fc_bias=0.0, **run)
    assert losses == pytest.approx([math.log(21)] * 16)
    losses.clear()
    ours = trained(encoder, devkit, tmp_path / "ours", **run)
    assert losses[0] == pytest.approx(math.log(21))
    assert losses[-1] < math.log(21) - 0.1
    for name, tensor in encoder.tensors.items():
        assert torch.equal(dead[f"backbone.trunk.{name}"], tensor)
        assert not torch.equal(ours[f"backbone.trunk.{name}"], tensor)


def test_paper_recipe_reaches_the_runner(tmp_path: Path) -> None:
    """Protocols 6.1, read back from what was built; with SBD's masks, full size, for training."""
    devkit = make_devkit(tmp_path / "data", images=1)
    make_sbd(devkit, np.full((50, 60), 20, np.uint8))
    runner = build_runner(RECIPES["paper"], devkit, seed=0, work=tmp_path / "work", device=CPU)
    wrapper, model = runner.optim_wrapper, runner.model
    names = {id(p): name for name, p in model.named_parameters()}
    settings = {
        names[id(p)]: (group["lr"], group["momentum"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for p in group["params"]
    }
    assert settings.pop("decode_head.conv_seg.bias") == (2e-4, 0.9, 0)
    assert set(settings.values()) == {(1e-4, 0.9, 5e-4)}
    assert len(settings) == 10 + 4 + 1
    assert "decode_head.upscore.weight" not in settings
    assert not model.decode_head.upscore.weight.requires_grad
    assert wrapper._accumulative_counts == 20
    assert runner.train_loop.max_iters == 20 * 100_000
    assert model.backbone.fc6.weight.shape == (4096, 256, 6, 6)
    assert float(model.backbone.fc6.weight.detach().std()) == pytest.approx(0.005, rel=0.01)
    assert model.backbone.fc6.bias.unique().tolist() == model.backbone.fc7.bias.unique().tolist() == [1]
    batch = next(iter(runner.train_dataloader))
    assert batch["inputs"][0].shape == (3, 50, 60)
    assert batch["data_samples"][0].gt_sem_seg.data.unique().tolist() == [20]
    prepared = model.data_preprocessor(batch, True)["inputs"]
    torch.testing.assert_close(prepared[0, :, 0, 0], torch.tensor([90.0 - 123, 120 - 117, 150 - 104]), rtol=0, atol=2)


def test_updates_average_the_accumulated_gradients(encoder: Encoder, devkit: Path, tmp_path: Path) -> None:
    """With one image, dropout aside, the score bias after one update of 1 or 3 images is the same."""
    for split in ("train", "val"):
        path = segmentation.split_path(devkit, split)
        path.write_text(path.read_text().split()[0] + "\n")
    one, three = (
        trained(encoder, devkit, tmp_path / f"{n}", iterations=1, accumulate=n)["decode_head.conv_seg.bias"]
        for n in (1, 3)
    )
    assert one.abs().max() > 0
    torch.testing.assert_close(one, three)


def test_draws_are_with_replacement_and_resume() -> None:
    draws = segmentation.Draws(10, seed=7)
    order = [n for n, _ in zip(draws, range(0), strict=False)]
    first = [n for n, _ in zip(draws, range(50), strict=False)]
    draws.skip(20)
    assert order == []
    assert [n for n, _ in zip(draws, range(30), strict=False)] == first[20:]
    assert len(set(first[:10])) < 10
    assert set(first) == set(range(10))


def test_nan_loss_names_the_iteration(devkit: Path, tmp_path: Path, encoder: Encoder) -> None:
    recipe = dataclasses.replace(SHRUNK, rate=1e6, iterations=20)
    with pytest.raises(Failed, match=r"loss is (nan|inf) in iteration \d+: .*rescale") as caught:
        evaluate(encoder, recipe, devkit, seed=0, work=tmp_path / "work", device=CPU)
    assert "\n" not in str(caught.value)


def test_one_image_splits(encoder: Encoder, tmp_path: Path) -> None:
    devkit = make_devkit(tmp_path / "data", images=1, size=(51, 37))
    outcome = evaluate(encoder, SHRUNK, devkit, seed=0, work=tmp_path / "work", device=CPU)
    assert 0 <= outcome.metrics["mean_iu"] <= 1
    assert data(SHRUNK, devkit).images == {"train": 1, "test": 1}


@pytest.mark.parametrize("spoil", ["remove", "resize", "label"])
def test_no_image_is_skipped(encoder: Encoder, devkit: Path, tmp_path: Path, spoil: str) -> None:
    path = voc.mask_path(devkit / "VOC2012", "2012_000003")
    if spoil == "remove":
        path.unlink()
    else:
        size = (5, 5) if spoil == "resize" else (96, 128)
        Image.fromarray(np.full(size, 21 if spoil == "label" else 0, np.uint8)).save(path)
    segmentation.split_path(devkit, "train").write_text("2012_000000\n")
    with pytest.raises(Failed, match=path.name):
        evaluate(encoder, SHRUNK, devkit, seed=0, work=tmp_path / "work", device=CPU)


def test_data_digests_what_is_read(devkit: Path) -> None:
    before = data(SHRUNK, devkit)
    assert before.split == "train → val"
    assert before == data(SHRUNK, devkit)
    mask = voc.mask_path(devkit / "VOC2012", "2012_000003")
    pixels = np.array(Image.open(mask))
    pixels[-1, -1] = 9
    Image.fromarray(pixels).save(mask)
    changed = data(SHRUNK, devkit)
    assert changed.sha256 != before.sha256
    segmentation.split_path(devkit, "val").write_text("2012_000000\n")
    assert data(SHRUNK, devkit).sha256 != changed.sha256
    mask.unlink()
    with pytest.raises(Missing, match=mask.name):
        data(SHRUNK, devkit)


def test_seg11valid_is_shipped_and_the_devkits_own_goes_first(devkit: Path) -> None:
    own = segmentation.split_path(devkit, "seg11valid")
    assert len(segmentation.voc_ids(devkit, "seg11valid")) == 5
    own.unlink()
    ids = segmentation.voc_ids(devkit, "seg11valid")
    assert len(ids) == len(set(ids)) == 736


def test_sbd_is_asked_for_where_it_belongs(devkit: Path) -> None:
    with pytest.raises(Missing, match="benchmark_RELEASE/dataset"):
        data(RECIPES["paper"], devkit)
    make_sbd(devkit, np.full((50, 60), 3, np.uint8))
    assert data(RECIPES["paper"], devkit).images == {"train": 1, "test": 5}
    mask = segmentation.examples(RECIPES["paper"], devkit, part="train")[0].mask
    assert segmentation.read_truth(mask, size=(50, 60)).shape == (50, 60)
    with pytest.raises(Failed, match=r"2008_000002\.mat"):
        segmentation.read_truth(mask, size=(60, 50))
    mask.write_bytes(b"no")
    with pytest.raises(Failed, match=r"2008_000002\.mat"):
        segmentation.read_truth(mask, size=(50, 60))


def test_paddings_that_leave_the_edge_out_are_refused() -> None:
    with pytest.raises(ValueError, match="pad"):
        build_model(dataclasses.replace(NARROW, conv1_pad=20, fc6_pad=1))
