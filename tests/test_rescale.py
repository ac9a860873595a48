"""Data-dependent initialisation and rescaling, on a handful of images of the real size."""

import functools
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks import cli, commands
from pretrain import Folders, filters, kmeans, rescale, rescaled
from pretrain.alexnet import AlexNet, Architecture, read_encoder, save_encoder
from pretrain.files import Failed
from pretrain.images import batches, still_images
from pretrain.randomness import generator

NARROW = Architecture(widths=(16, 32, 48, 32, 32))
NO_NORM = Architecture(widths=(16, 32, 48, 32, 32), norm="none", slope=0.2)
PROVENANCE = {"method": "context", "variant": "random-region", "supervision": "context", "iterations": 500, "seed": 3}


def pictures(seed, *, count=4):
    """count×3×227×227: smooth noise, so that neighbouring pixels agree, in grey levels minus the mean."""
    coarse = torch.randn(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed))
    return 60 * F.interpolate(coarse, size=(227, 227), mode="bilinear")


@pytest.fixture(scope="module")
def images():
    return pictures(0)


def trunk(architecture=NARROW, *, seed=0, bias=None):
    torch.manual_seed(seed)
    made = AlexNet(architecture)
    for conv in made.convs():
        nn.init.kaiming_normal_(conv.weight)
        nn.init.normal_(conv.bias, std=0.1) if bias is None else nn.init.constant_(conv.bias, bias)
    return made


def initialised(images, *, kind, seed=0):
    torch.manual_seed(0)
    made = AlexNet(NARROW)
    rescale.initialise(made.convs(), lambda: made(images), kind=kind, random=generator(seed))
    return made


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- within a layer ----


@pytest.mark.parametrize("kind", ["random", "pca", "kmeans"])
def test_every_channel_has_mean_a_tenth_and_deviation_one(kind, images):
    made, seen = initialised(images, kind=kind), []
    for conv in made.convs():
        conv.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        made(images)
    assert len(seen) == 5
    for output in seen:
        channels = output.movedim(1, 0).flatten(1).double()
        torch.testing.assert_close(channels.mean(1), torch.full_like(channels[:, 0], 0.1), rtol=0, atol=1e-3)
        torch.testing.assert_close(channels.std(1), torch.ones_like(channels[:, 0]), rtol=1e-3, atol=0)


def test_kmeans_depends_on_the_images_the_seed_and_nothing_else(images):
    first = initialised(images, kind="kmeans")
    torch.rand(7)
    np.random.seed(1)
    assert same(first, initialised(images, kind="kmeans"))
    for other in (
        initialised(pictures(1), kind="kmeans"),
        initialised(images, kind="kmeans", seed=1),
        initialised(images, kind="random"),
        initialised(images, kind="pca"),
    ):
        for ours, theirs in zip(first.convs(), other.convs(), strict=True):
            assert not torch.isclose(ours.weight, theirs.weight, rtol=0.01).all(dim=(1, 2, 3)).any()


def test_filters_of_smooth_images_are_smooth(images):
    """What k-means is for: neighbouring weights agree, as neighbouring pixels do."""

    def roughness(made):
        weight = made.conv1.weight.detach()
        return float((weight[..., 1:] - weight[..., :-1]).square().mean() / weight.square().mean())

    assert roughness(initialised(images, kind="kmeans")) < 0.5
    assert 1.7 < roughness(initialised(images, kind="random")) < 2.3


LAYERS = {
    "conv1": nn.Conv2d(3, 8, 11, stride=4),
    "grouped": nn.Conv2d(6, 8, (3, 5), padding=(1, 2), groups=2),
    "linear": nn.Linear(20, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_are_what_the_layer_sees(name):
    layer = LAYERS[name]
    x = torch.randn(40, 20) if name == "linear" else torch.randn(2, layer.in_channels, 31, 29)
    groups = getattr(layer, "groups", 1)
    patches = filters.sample(layer, x, random=generator(0))
    pairs = zip(patches.chunk(groups, 1), layer.weight.chunk(groups), strict=True)
    ours = torch.cat([patch @ weight.flatten(1).T for patch, weight in pairs], 1) + layer.bias
    theirs = layer(x).movedim(1, -1).flatten(0, -2)
    assert ours.shape == theirs.shape  # every place once, in another order
    torch.testing.assert_close(ours.sort(0).values, theirs.sort(0).values, rtol=1e-4, atol=1e-4)


def test_patches_are_bounded(monkeypatch):
    monkeypatch.setattr(filters, "PATCHES", 50)
    assert filters.sample(LAYERS["conv1"], torch.randn(2, 3, 31, 29), random=generator(0)).shape == (50, 363)


def test_pca_filters_are_the_whitened_leading_directions():
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(10, 10, generator=random)).Q
    spread = torch.tensor([9.0, 7, 5, 1, 1, 1, 1, 1, 1, 1])
    patches = torch.randn(5000, 10, generator=random) * spread @ basis.T + 3
    made = filters.filters(patches, 3, kind="pca", random=random)
    inside = made @ basis[:, :3]
    assert inside.norm() > 0.99 * made.norm()
    answers = (patches - patches.mean(0)) @ made.T
    torch.testing.assert_close(answers.T @ answers, torch.eye(3), rtol=0, atol=1e-3)


def test_kmeans_filters_are_one_for_each_kind_of_patch():
    random = torch.Generator().manual_seed(0)
    kinds = torch.randn(5, 20, generator=random)
    label = torch.arange(1000) % 5
    patches = kinds[label] + 0.05 * torch.randn(1000, 20, generator=random)
    made = filters.filters(patches, 5, kind="kmeans", random=random)
    best = ((patches - patches.mean(0)) @ F.normalize(made).T).argmax(1)
    assert torch.equal(best, best[:5].repeat(200))
    assert len(set(best.tolist())) == 5


def test_a_group_sees_its_own_channels():
    layer, x = nn.Conv2d(8, 12, 3, groups=2), torch.randn(4, 8, 20, 20)
    filters.fill(layer, x, kind="kmeans", random=generator(0))
    before = layer.weight.detach().clone()
    x[:, :4] = torch.randn(4, 4, 20, 20)
    filters.fill(layer, x, kind="kmeans", random=generator(0))
    assert torch.equal(layer.weight[6:], before[6:])
    assert not torch.isclose(layer.weight[:6], before[:6]).all(dim=(1, 2, 3)).any()


def test_too_few_patches_give_random_filters(capsys):
    layer, x = nn.Linear(20, 8), torch.randn(7, 20)
    filters.fill(layer, x, kind="kmeans", random=generator(0))
    assert capsys.readouterr().err == "7 patches are too few for 8 kmeans filters: these are random\n"
    found = layer.weight.detach().clone()
    filters.fill(layer, x, kind="random", random=generator(0))
    assert torch.equal(layer.weight, found)


# ---- between layers ----


def eight(architecture, **options):
    """A trunk under a narrow head, as name → layer, and the network."""
    made = trunk(architecture, **options)
    width = architecture.widths[-1] * 36
    head = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 50))
    layers = {f"conv{k}": conv for k, conv in enumerate(made.convs(), start=1)}
    return layers | {"fc6": head[0], "fc7": head[2], "fc8": head[4]}, lambda x: head(made(x).flatten(1))


def log_ratios(layers, network, images, random):
    top = network(images)
    top.backward(torch.randn(top.shape, generator=random))
    ratios = [(layer.weight.grad.square().mean() / layer.weight.square().mean()).sqrt() for layer in layers.values()]
    for layer in layers.values():
        layer.weight.grad = None
    return torch.stack(ratios).log().detach(), float(top.detach().std(0, correction=0).mean())


@pytest.mark.parametrize("architecture", [NARROW, NO_NORM, Architecture()], ids=str)
def test_all_layers_learn_at_the_same_rate(architecture, images):
    layers, network = eight(architecture)
    before, _ = log_ratios(layers, network, images, generator(1))
    done = rescale.balance(layers, network, images, random=generator(1))
    after, deviation = log_ratios(layers, network, images, generator(1))
    assert before.max() - before.min() > 1
    assert 1 <= done.rounds <= 10
    assert done.spread < 0.01
    assert after.max() - after.min() < 0.02
    assert abs(math.log(deviation)) < 8 * 0.01 + 1e-3
    # The promise is for these gradients; others (few here) find it better than it was.
    fresh, _ = log_ratios(layers, network, images, generator(2))
    assert fresh.max() - fresh.min() < (before.max() - before.min()) / 2


@pytest.mark.parametrize("architecture", [NARROW, NO_NORM, Architecture()], ids=str)
def test_a_trunk_ends_with_equal_rates_and_a_pool5_of_deviation_one(architecture, images):
    made = trunk(architecture)
    with torch.no_grad():
        made.conv2.weight *= 20
    done = rescale.rescale_trunk(made, images, random=generator(1))
    layers = {f"conv{k}": conv for k, conv in enumerate(made.convs(), start=1)}
    after, _ = log_ratios(layers, made, images, generator(1))
    assert done.spread < 0.01
    assert after.max() - after.min() < 0.02
    with torch.no_grad():
        deviation = made(images).movedim(1, 0).flatten(1).std(1, correction=0).mean()
    assert abs(deviation.log()) < 5 * 0.01 + 1e-3


@pytest.mark.parametrize("bias", [0.0, None])
def test_a_homogeneous_trunk_computes_the_same_up_to_scale(bias, images):
    made = trunk(NO_NORM, bias=bias)
    with torch.no_grad():
        made.conv2.weight *= 7
        made.conv2.bias *= 7
        before = made(images)
        done = rescale.rescale_trunk(made, images, random=generator(0))
        after = made(images)
    assert done.spread < 0.01
    scale = (before * after).sum() / before.square().sum()
    assert abs(scale.log()) > 0.5
    torch.testing.assert_close(after, scale * before, rtol=1e-3, atol=1e-3 * float(after.abs().max()))


def test_a_badly_scaled_trunk_comes_out_as_the_well_scaled_one(images):
    good, bad = trunk(), trunk()
    with torch.no_grad():
        bad.conv3.weight *= 100
        bad.conv3.bias *= 100
        bad.conv4.weight /= 100
        torch.testing.assert_close(bad(images), good(images), rtol=1e-3, atol=1e-2)
    for made in (good, bad):
        rescale.rescale_trunk(made, images, random=generator(0))
    for ours, theirs in zip(good.parameters(), bad.parameters(), strict=True):
        torch.testing.assert_close(ours.norm(), theirs.norm(), rtol=0.03, atol=0)
        torch.testing.assert_close(ours / ours.norm(), theirs / theirs.norm(), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bits(images):
    found = [trunk() for _ in range(3)]
    for made, seed in zip(found, (0, 0, 1), strict=True):
        state = torch.get_rng_state()
        rescale.rescale_trunk(made, images, random=generator(seed))
        assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global generator
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_net_that_is_not_homogeneous_is_told(images, capsys):
    layers, network = eight(NARROW)
    with torch.no_grad():
        layers["conv1"].weight *= 100  # LRN divides by much more than 1 there
    done = rescale.balance(layers, network, images, random=generator(1))
    assert "the net is not homogeneous" in capsys.readouterr().err
    assert done.spread < 0.05


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda made: made.conv3.weight.zero_(), "conv3 is dead (all its weights are zero)"),
        (lambda made: made.conv4.bias.fill_(-1e6), "the features behind it are all zero"),
        (lambda made: made.conv5.weight.mul_(1e38), "NaN or infinite"),
    ],
)
def test_what_cannot_be_rescaled_is_told(spoil, said, images):
    made = trunk()
    with torch.no_grad():
        spoil(made)
    with pytest.raises(Failed) as caught:
        rescale.rescale_trunk(made, images, random=generator(0))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the commands ----


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with twelve images, six of them for rescaling."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stripes").mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        wave = np.sin(np.arange(80) / (2 + k % 4)) * 60
        stripes = np.broadcast_to(wave[:, None] if k % 2 else wave, (80, 80))
        pixels = rng.integers(70, 180, 3) + stripes[:, :, None] + rng.normal(0, 9, (80, 80, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "stripes" / f"{k}.png")
    monkeypatch.setattr(rescaled, "IMAGES", 6)
    return tmp_path


def bench(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = cli.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def written(path, architecture=NO_NORM, *, provenance=PROVENANCE):
    save_encoder(path, trunk(architecture), provenance)
    return read_encoder(path)


def test_an_encoder_file_is_rescaled(here, capsys):
    source = written(here / "encoder.safetensors")
    command = ("rescale", "encoder.safetensors", "--images", "stripes")
    code, out, err = bench(capsys, *command)
    assert code == 0, err
    path = here / out.strip()
    assert path.parent.name.startswith("context-random-region-rescaled-")
    assert (here / "runs/pretrain/last").read_text() == f"pretrain/{path.parent.name}/encoder.safetensors\n"
    found = read_encoder(path)
    assert found.architecture == NO_NORM
    assert not any(torch.equal(source.tensors[name], found.tensors[name]) for name in found.tensors)
    record = found.provenance.pop("rescaled")
    assert found.provenance == PROVENANCE | {"variant": "random-region-rescaled"}
    assert (record["source"], record["images"], record["seed"]) == (source.sha256, 6, 0)
    assert (record["dataset"]["name"], record["dataset"]["images"]) == ("stripes", 12)
    assert record["spread"] < 0.01
    assert record["rounds"] >= 1
    # Again: nothing is computed. Elsewhere: the same bits. Another seed: others.
    stamp = path.stat().st_mtime_ns
    code, again, err = bench(capsys, *command)
    assert (code, again, path.stat().st_mtime_ns) == (0, out, stamp)
    assert err == f"{path.relative_to(here)}: already rescaled, reused\n"
    assert bench(capsys, *command, "--runs", "others")[0] == 0
    again = read_encoder(here / "others" / path.relative_to(here / "runs"))
    assert again.provenance["rescaled"] == record
    assert all(torch.equal(again.tensors[name], found.tensors[name]) for name in found.tensors)
    code, other, _ = bench(capsys, *command, "--seed", 1)
    assert (code, other == out) == (0, False)
    assert not torch.equal(read_encoder(here / other.strip()).tensors["conv1.weight"], found.tensors["conv1.weight"])


def test_the_place_and_the_default_images_can_be_given(here, capsys, monkeypatch):
    written(here / "encoder.safetensors", provenance=PROVENANCE | {"variant": ""})
    (here / "data").mkdir()
    (here / "stripes").rename(here / "data/images")
    monkeypatch.setattr(commands, "TINY", here / "data")
    monkeypatch.setattr(commands, "_make_tiny", lambda: None)
    command = ("rescale", "encoder.safetensors", "--out", "mine/out.safetensors")
    assert bench(capsys, *command)[:2] == (0, "mine/out.safetensors\n")
    assert read_encoder(here / "mine/out.safetensors").provenance["variant"] == "rescaled"
    assert not (here / "runs/pretrain/last").exists()
    assert "reused" in bench(capsys, *command)[2]
    for other in (("--seed", 1), ("--out", "encoder.safetensors")):  # the source itself, too
        before = {p: p.read_bytes() for p in here.rglob("*.safetensors")}
        code, out, err = bench(capsys, *command, *other)
        assert (code, out) == (2, "")
        assert "holds something else already" in err
        assert {p: p.read_bytes() for p in here.rglob("*.safetensors")} == before


def test_errors_are_one_line(here, capsys):
    (here / "nothing").mkdir()
    (here / "pickle.safetensors").write_bytes(b"\x80\x04.")
    written(here / "good.safetensors")
    written(here / "odd.safetensors", provenance=PROVENANCE | {"variant": "../../.."})
    made = trunk(NO_NORM)
    nn.init.zeros_(made.conv3.weight)
    save_encoder(here / "dead.safetensors", made, PROVENANCE)
    whole = (here / "good.safetensors").read_bytes()
    (here / "nan.safetensors").write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")
    for arguments, code, said in (
        (("absent.safetensors", "--images", "stripes"), 3, "absent.safetensors: no such encoder file"),
        (("pickle.safetensors", "--images", "stripes"), 1, "pickle.safetensors: not a readable safetensors file"),
        (("good.safetensors", "--images", "nowhere"), 3, "nowhere: no such folder"),
        (("good.safetensors", "--images", "nothing"), 3, "nothing: no images here"),
        (("dead.safetensors", "--images", "stripes"), 1, "dead.safetensors: conv3 is dead"),
        (("nan.safetensors", "--images", "stripes"), 1, "holds NaN or infinite values"),
        (("odd.safetensors", "--images", "stripes"), 1, "odd.safetensors: its provenance names it"),
    ):
        found, out, err = bench(capsys, "rescale", *arguments)
        assert (found, out) == (code, ""), arguments
        assert said in err.splitlines()[-1]
        assert "Traceback" not in err
    assert not (here / "runs/pretrain").exists()


def test_pretrain_by_kmeans(here, capsys, monkeypatch):
    monkeypatch.setattr(kmeans, "AlexNet", functools.partial(AlexNet, NARROW))  # a whole one takes 8 s
    command = ("pretrain", "--method", "kmeans", "--images", "stripes", "--batch", 6)
    code, out, err = bench(capsys, *command)
    assert code == 0, err
    path = here / out.strip()
    found = read_encoder(path)
    provenance = found.provenance
    assert (provenance["method"], provenance["variant"], provenance["supervision"]) == ("kmeans", "", "initialization")
    assert (provenance["iterations"], provenance["images_seen"]) == (0, 6)
    assert (provenance["dataset"]["name"], provenance["dataset"]["images"]) == ("stripes", 12)
    assert provenance["seconds"] > 0
    assert [p.name for p in path.parent.iterdir()] == ["encoder.safetensors"]
    assert "already trained" in bench(capsys, *command)[2]
    # Elsewhere: the same bits. Another seed: others.
    again, other = (bench(capsys, *command, *more)[1].strip() for more in (("--runs", "again"), ("--seed", 1)))
    assert all(torch.equal(read_encoder(here / again).tensors[name], found.tensors[name]) for name in found.tensors)
    assert not torch.equal(read_encoder(here / other).tensors["conv1.weight"], found.tensors["conv1.weight"])
    code, out, err = bench(capsys, *command, "--iterations", 3)
    assert (code, out, err) == (2, "", "bench: method kmeans is not trained: leave --iterations out, or give 0\n")
    shutil.rmtree(here / "stripes")
    assert bench(capsys, *command)[0] == 3  # images are needed, though nothing is trained


def test_the_weights_of_pretrain_by_kmeans(here, capsys, monkeypatch):
    """They are those of the two steps, on the first batch, and not Caffe's."""
    monkeypatch.setattr(kmeans, "AlexNet", functools.partial(AlexNet, NARROW))
    command = ("pretrain", "--method", "kmeans", "--images", "stripes", "--batch", 6)
    found = read_encoder(here / bench(capsys, *command)[1].strip()).tensors
    data = still_images(Folders(images=(here / "stripes",)), supervision="").open(here / "runs/stores")
    (batch,) = batches(data, batch=6, seed=0, start=0, stop=1, device=torch.device("cpu"))
    made = initialised(batch, kind="kmeans", seed=1)
    rescale.rescale_trunk(made, batch, random=generator(0))
    for name, tensor in made.state_dict().items():
        if name.endswith("weight"):  # another seed, the same scale
            assert abs(float((found[name].norm() / tensor.norm()).log())) < 0.3
    torch.manual_seed(0)
    assert not any(torch.equal(found[name], tensor) for name, tensor in AlexNet(NARROW).state_dict().items())
