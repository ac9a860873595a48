"""The relative context row: where patches are cut, what is hidden in them, and what is learned of their places."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks import cli
from pretrain import Folders, Solver
from pretrain.alexnet import AlexNet, Architecture, read_encoder
from pretrain.files import Missing, Usage
from pretrain.randomness import ALONE, Draw, Shard, generator
from pretrain.relative import (
    DIRECTIONS,
    PAIRS,
    BatchNorm,
    Grids,
    Relative,
    build,
    cut,
    decode,
    defaults,
    defended,
    source,
)
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
PATCH, STEP, JITTER = 96, 96 + 48, 7  # protocols 7.5
SPAN = 2 * STEP + PATCH + 2 * JITTER
CELLS = [(row, column) for row in range(3) for column in range(3)]


def draw(*key: str | int) -> Draw:
    return Draw(generator(0, *key))


def noise(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def opened(folder: Path, cache: Path) -> Grids:
    data = source(Folders(images=(folder,))).open(cache)
    assert isinstance(data, Grids)
    return data


# ---- where patches are cut ----


@pytest.fixture(scope="module")
def places() -> tuple[Tensor, Tensor]:
    """Of 40 images, from what their patches show: the sides they were resized to, N; corners, N×4×9×2 (x, y).

    Red is how far a pixel is from the left, green from the top, from 0 to 1.
    """
    across = (torch.arange(40) + 0.5) / 40
    image = torch.stack([across.expand(40, 40), across[:, None].expand(40, 40), torch.zeros(40, 40)], 2)
    patches = cut(image.expand(40, 40, 40, 3), draw("places"))
    assert patches.shape == (40 * 4, 9, 3, PATCH, PATCH)
    shown = patches.view(40, 4, 9, 3, PATCH, PATCH)[:, :, :, :2].double() + torch.tensor([[123.0], [117.0]])[..., None]
    x, y = shown[:, :, :, 0], shown[:, :, :, 1]
    assert (x - x[..., :1, :]).abs().max() < 1e-4  # upright
    assert (y - y[..., :1]).abs().max() < 1e-4
    middle = slice(40, 57)  # of a patch: bilinear numbers are exact away from the border of the image
    step = (x[..., 48, 56] - x[..., 48, 40]).flatten(1).mean(1) / 16
    at = torch.stack([x[..., 48, middle].mean(-1), y[..., middle, 48].mean(-1)], -1)
    return 1 / step, at / step[:, None, None, None] - 48.5


def test_images_are_resized_to_an_area_between_150_and_450_thousand(places: tuple[Tensor, Tensor]) -> None:
    """And at least so far that they hold a grid."""
    sides, _ = places
    assert SPAN - 0.1 < sides.min() < 170_000**0.5
    assert 430_000**0.5 < sides.max() < 450_000**0.5 + 0.1
    assert sides.square().mean().item() == pytest.approx(300_000, abs=45_000)  # 86,600 / √40, three times


def test_patches_are_whole_pixels_inside_the_image(places: tuple[Tensor, Tensor]) -> None:
    sides, corners = places
    assert (corners - corners.round()).abs().max() < 0.1
    assert corners.min() > -0.1
    assert (corners + PATCH - sides[:, None, None, None]).max() < 0.6  # to the nearest pixel


def test_patches_are_144_apart_and_shifted_by_up_to_7_each(places: tuple[Tensor, Tensor]) -> None:
    _, corners = places
    grid = torch.tensor([[column * STEP, row * STEP] for row, column in CELLS])
    shift = corners - grid  # and where the grid begins
    apart = shift.amax(2) - shift.amin(2)
    assert 12 < apart.max() < 2 * JITTER + 1.1
    shift = (shift - shift.mean(2, keepdim=True)) * (9 / 8) ** 0.5
    assert shift.std().item() == pytest.approx(JITTER / 3**0.5, rel=0.05)  # uniform
    across, down = shift[..., 0].flatten(), shift[..., 1].flatten()
    assert abs(torch.corrcoef(torch.stack([across, down]))[0, 1]) < 0.08  # of 1440: three deviations


def test_four_grids_lie_anywhere_in_an_image(places: tuple[Tensor, Tensor]) -> None:
    sides, corners = places
    begins = (corners - torch.tensor([[column * STEP, row * STEP] for row, column in CELLS])).mean(2) - JITTER
    roomy = sides > SPAN + 100
    assert roomy.sum() > 20
    share = begins[roomy] / (sides[roomy, None, None] - SPAN)
    assert share.min() < 0.1
    assert share.max() > 0.9
    assert share.mean().item() == pytest.approx(0.5, abs=0.06)
    assert (share[:, 0] - share[:, 1]).abs().mean() > 0.2  # each grid is drawn by itself


def test_the_directions_are_those_of_a_plain_loop() -> None:
    """Every adjacent pair in both orders; each of the eight directions has one number, whatever the pair."""
    expected = []
    for first, (row, column) in enumerate(CELLS):
        for second, (other_row, other_column) in enumerate(CELLS):
            step = (other_row - row, other_column - column)
            if first != second and max(map(abs, step)) == 1:
                expected.append((first, second, DIRECTIONS.index(step)))
    assert sorted(PAIRS) == sorted(expected)
    assert len(PAIRS) == 40
    assert len(set(DIRECTIONS)) == 8
    numbers = {(first, second): number for first, second, number in PAIRS}
    for (first, second), number in numbers.items():
        assert DIRECTIONS[numbers[second, first]] == tuple(-step for step in DIRECTIONS[number])


# ---- what is hidden in them ----


@pytest.fixture(scope="module")
def hidden() -> tuple[Tensor, Tensor]:
    """600 patches of noise, of three kinds (rich, faint, and red alone), before and after."""
    patches = torch.rand(600, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(0)) * 200 - 80
    patches[::3] *= 0.02
    return patches, defended(patches.clone(), draw("hidden"))


def kept_channels(before: Tensor, after: Tensor) -> Tensor:
    """The channel of each patch that is most like what it was at low resolution, which all keep."""
    old, new = (F.avg_pool2d(x - x.mean((2, 3), keepdim=True), 24).flatten(2) for x in (before, after))
    return F.cosine_similarity(old, new, dim=2).argmax(1)


def test_one_channel_is_kept_at_random_and_the_others_are_noise(hidden: tuple[Tensor, Tensor]) -> None:
    before, after = hidden
    kept = kept_channels(before, after)
    assert [160 < count < 240 for count in kept.bincount().tolist()] == [True] * 3  # of 600: 200 ± 3 · 11.5
    for old, new, channel in zip(before.double(), after.double(), kept.tolist(), strict=True):
        picture, others = new[channel], new[[k for k in range(3) if k != channel]]
        assert picture.mean().abs() < 1e-3
        extent = others.max() - others.min()  # of uniform noise in ±½, and hardly less in so many
        assert others.mean().abs() < 0.01 * extent
        assert others.std() / extent == pytest.approx(12**-0.5, rel=0.02)
        assert abs(torch.corrcoef(torch.stack([others[0].flatten(), others[1].flatten()]))[0, 1]) < 0.05
        scale = picture.std() / (old[channel].std() * extent)
        assert scale < 1.01  # by what the noise was multiplied, or less where detail was lost


def test_every_patch_has_a_root_mean_square_of_50(hidden: tuple[Tensor, Tensor]) -> None:
    """Faint ones too, and those of one colour: there the noise is all there is."""
    flat = defended(torch.full((2, 3, PATCH, PATCH), 40.0), draw())
    for patches in (hidden[1], flat):
        found = patches.square().mean((1, 2, 3)).sqrt()
        assert found == pytest.approx(torch.full((len(patches),), 50.0), rel=1e-4)


def test_a_third_lose_detail_down_to_a_hundred_pixels(hidden: tuple[Tensor, Tensor]) -> None:
    """Upsampled from s×s, noise is a matrix of rank s. Released code: s² uniform between 10² and 95²."""
    before, after = hidden
    kept = kept_channels(before, after)
    chosen = torch.arange(len(kept))
    strengths = torch.linalg.svdvals(after[chosen, kept].double())
    ranks = (strengths > strengths[:, :1] * 1e-5).sum(1)
    old = (before - before.mean((2, 3), keepdim=True))[chosen, kept].flatten(1)
    whole = F.cosine_similarity(old, after[chosen, kept].flatten(1)) > 0.9999
    assert 152 < (~whole).sum() < 244  # of 600: 198 ± 4 · 11.5
    sides = ranks[~whole].double()
    assert sides.min() >= 10
    assert sides.max() <= 95
    expected = 2 / 3 * (95**3 - 10**3) / (95**2 - 10**2) - 0.5
    assert sides.mean().item() == pytest.approx(expected, abs=5)  # 63.5; uniform in s: 52.5


# ---- the batches ----


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Grids:
    root = tmp_path_factory.mktemp("pair")
    for width in (150, 160):
        noise(root / "images" / f"{width}.png", width, 140)
    return opened(root / "images", root / "stores")


def test_a_batch_is_four_grids_an_image_whoever_cuts_them(pair: Grids) -> None:
    raw = pair.read(pair.train)
    assert raw[0].shape == (2, 400, 400, 3)
    whole = pair.batch(raw, draw("batch"))
    assert whole.shape == (8, 9, 3, PATCH, PATCH)
    parts = [
        pair.batch(pair.read(pair.train[rank : rank + 1]), Draw(generator(0, "batch"), Shard(rank, 2)))
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(pair.batch(raw, draw("other")), whole)


def test_small_images_are_skipped(tmp_path: Path) -> None:
    """An image is enlarged threefold at most: 3 · 133 pixels hold the 398 of a grid, 3 · 132 do not."""
    for size in ((133, 500), (500, 133), (132, 500), (500, 132)):
        noise(tmp_path / "images" / f"{size[0]}.{size[1]}.png", *size)
    data = opened(tmp_path / "images", tmp_path / "stores")
    assert (data.store.images, data.store.skipped, data.store.side) == (2, 2, 400)
    assert decode(tmp_path / "images" / "132.500.png") == "smaller than a patch grid (133 pixels)"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "{folder}: no images here: give --images a folder of JPEG, PNG, WebP, TIFF, BMP, PNM or GIF files, "
         "or a VOC year's folder"),
        (["small"], "{folder}: not one of 1 files can be used ({folder}/small.png: smaller than a patch grid "
         "(133 pixels)): give another folder"),
        (["broken", "small"], "{folder}: not one of 2 files can be used ({folder}/broken.png: cannot be decoded): "
         "give another folder"),
    ],
)  # fmt: skip
def test_images_without_room_for_a_grid_are_refused(
    files: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in files:
        noise(folder / f"{name}.png", 132, 132)
    if "broken" in files:
        (folder / "broken.png").write_bytes(b"not a picture")
    said = said.format(folder=folder)
    config = Config("relative", None, "l2", iterations=1, batch=1, rate=0.1, seed=0)
    with pytest.raises(Missing) as caught:
        pretrain(config, folders=Folders(images=(folder,)), runs=tmp_path / "runs", device=CPU)
    assert (str(caught.value), caught.value.exit_code) == (said, 3)
    given = ["--images", str(folder), "--shapes", str(folder), "--runs", str(tmp_path / "runs")]
    assert cli.main(["pretrain", "--method", "relative", *given]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"bench: {said}"
    assert not list(tmp_path.glob("runs/pretrain/*"))


def test_relative_has_no_l1_loss() -> None:
    with pytest.raises(Usage, match=r"^--loss l1: relative has a cross-entropy: leave --loss out$") as caught:
        build(None, mask=None, loss="l1", shapes=None)
    assert caught.value.exit_code == 2


# ---- the network ----


def test_the_recipe_is_the_released_solver() -> None:
    """Protocols 7.5: a rate of 1e-5 for the sum over pairs, which is what it is for their mean times their number."""
    recipe = defaults(None)
    assert (recipe.iterations, recipe.solver) == (1_000_000, Solver("sgd", momentum=0.0, decay=0.0))
    grids = 4 * recipe.batch
    assert 9 * grids <= 512 < 9 * (grids + 4)
    assert recipe.rate / (len(PAIRS) * grids) == pytest.approx(1e-5)


def test_a_batch_norm_is_torchs_over_the_batch_and_caffes_over_batches() -> None:
    """Without scale and shift. Running means: plain ones of the first 20 batches, then 5% of each new one."""
    norm, random = BatchNorm(3), torch.Generator().manual_seed(0)
    means, variances = np.zeros((2, 3))
    for number in range(1, 31):
        x = torch.randn(4, 3, 5, 2, generator=random) * 3 + number
        expected = F.batch_norm(x.double(), None, None, training=True, eps=1e-5)
        torch.testing.assert_close(norm(x, ALONE).double(), expected, rtol=1e-5, atol=1e-5)
        rows = x.double().movedim(1, -1).reshape(-1, 3).numpy()
        share = max(1 / number, 0.05)
        means, variances = (1 - share) * means + share * rows.mean(0), (1 - share) * variances + share * rows.var(0)
    assert norm.mean.numpy() == pytest.approx(means, rel=1e-5)
    assert norm.variance.numpy() == pytest.approx(variances, rel=1e-5)
    norm.eval()
    expected = (x - torch.tensor(means).view(3, 1, 1)) / torch.tensor(variances + 1e-5).sqrt().view(3, 1, 1)
    torch.testing.assert_close(norm(x, ALONE).double(), expected, rtol=1e-5, atol=1e-5)
    assert norm.batches == 30  # an eval pass is none
    assert list(norm.parameters()) == []


@pytest.fixture(scope="module")
def model(pair: Grids) -> Relative:
    """A network that has seen one batch, of two grids, and is being evaluated."""
    torch.manual_seed(0)
    model = Relative()
    with torch.no_grad():
        model(pair.batch(pair.read(pair.train), draw())[:2], draw())
    return model.eval()


@pytest.fixture(scope="module")
def grids(pair: Grids) -> Tensor:
    return pair.batch(pair.read(pair.train), draw("grids"))[3:5]


def test_the_network_is_an_ungrouped_caffenet_filled_by_xavier(model: Relative) -> None:
    trunk = model.encoder
    assert [conv.groups for conv in trunk.convs()] == [1] * 5
    assert [conv.out_channels for conv in trunk.convs()] == [96, 256, 384, 384, 256]
    assert trunk.conv1.padding == (5, 5)
    assert len(model.norms) == 5
    halves = (model.fc7_first.weight, model.fc7_second.weight)
    layers: tuple[nn.Conv2d | nn.Linear, ...] = (*trunk.convs(), model.fc6, model.fc8, model.direction)
    filled = [(layer.weight, layer.weight[0].numel()) for layer in layers] + [(half, 8192) for half in halves]
    for weight, inputs in filled:
        bound = math.sqrt(3 / inputs)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(inputs**-0.5, rel=0.02)
    assert not torch.equal(*halves)


def test_the_logits_of_a_pair_are_those_of_a_plain_tower_for_each_patch(model: Relative, grids: Tensor) -> None:
    """First in first place: concatenated, as the published fc7 takes them."""
    norms = [lambda x, norm=norm: norm(x, ALONE) for norm in model.norms]
    weight = torch.cat([model.fc7_first.weight, model.fc7_second.weight], 1)
    with torch.no_grad():
        found = model.logits(grids, ALONE)
        loss, scores = model(grids, draw()), model.scores(grids, draw())
        towers = [F.relu(norms[3](model.fc6(model.encoder(patch, norms=norms[:3]).flatten(1)))) for patch in grids]
        costs, right = [], 0
        for grid, tower in enumerate(towers):
            both = torch.stack([torch.cat([tower[first], tower[second]]) for first, second, _ in PAIRS])
            seven = F.relu(norms[4](F.linear(both, weight, model.fc7_first.bias)))
            expected = model.direction(F.relu(model.fc8(seven)))
            torch.testing.assert_close(found[grid], expected, rtol=1e-4, atol=1e-4)
            for row, (_, _, number) in zip(expected.double(), PAIRS, strict=True):
                costs.append(float(row.logsumexp(0) - row[number]))
                right += max(range(8), key=row.tolist().__getitem__) == number
    assert (loss.total.item(), loss.count.item()) == (pytest.approx(sum(costs), rel=1e-5), 80)
    assert scores["accuracy"].item() == pytest.approx(right / 80)
    assert scores["chance_accuracy"].item() == 1 / 8


def test_batch_norms_are_folded_into_the_encoder(model: Relative, grids: Tensor) -> None:
    """The ten tensors alone do what trunk and norms did; what was trained stays as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = AlexNet(Architecture(groups=(1, 1, 1, 1, 1)), conv1_pad=5)
    folded.load_state_dict(model.trained().state_dict())
    with torch.no_grad():
        expected = model.encoder(grids[0], norms=[lambda x, norm=norm: norm(x, ALONE) for norm in model.norms][:3])
        found, without = folded(grids[0]), model.encoder(grids[0])
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (without - expected).abs().max() > 0.1 * expected.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.trained().architecture == folded.architecture


def test_norms_are_folded_where_the_network_is() -> None:
    """A device without numbers stands for a GPU: nothing may mix it with the CPU."""
    with torch.device("meta"):
        model = Relative()
    assert {tensor.device.type for tensor in model.trained().state_dict().values()} == {"meta"}


# ---- a run ----

SHORT = Config("relative", None, "l2", iterations=12, batch=1, rate=0.0224, seed=0, solver=Solver("sgd"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of SHORT, trained on 19 noisy bowls and scored on one: which way brightness rises tells the place."""
    root = tmp_path_factory.mktemp("relative")
    (root / "bowls").mkdir()
    y, x = np.mgrid[:200, :200] / 200 - 0.5
    for k in range(20):
        rng = np.random.default_rng(k)
        pixels = (x**2 + y**2)[..., None] * 480 + rng.uniform(0, 20, 3) + rng.normal(0, 4, (200, 200, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "bowls" / f"{k:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.train.LOG_EVERY", 1)
        return pretrain(SHORT, folders=Folders(images=(root / "bowls",)), runs=root / "runs", device=CPU)


def test_the_loss_falls(trained: Path, losses_of: Callable[[Path], list[float]]) -> None:
    losses = losses_of(trained)
    assert len(losses) == SHORT.iterations
    assert np.mean(losses[-3:]) < 0.75 * losses[0]
    assert np.mean(losses[-3:]) < 0.6 * math.log(8)  # what a guess costs


def test_directions_in_a_held_out_image_are_told_better_than_by_chance(trained: Path) -> None:
    encoder = read_encoder(trained)
    assert encoder.provenance["held_out"]["chance_accuracy"] == 1 / 8
    assert encoder.provenance["held_out"]["accuracy"] > 0.4
    assert encoder.provenance["supervision"] == "relative context"
    assert encoder.architecture.groups == (1, 1, 1, 1, 1)


def test_pictures_are_the_nine_patches_of_each_grid(trained: Path) -> None:
    with Image.open(trained.parent / "pictures" / "000012.png") as image:
        assert image.size == (4 * PATCH, 9 * PATCH)
