"""Fresh layers that fit any encoder: standardised features, calibrated units, rates by layer."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.alexnet import AlexNet, Architecture, Encoder, read_encoder, save_encoder
from pretrain.files import Failed
from transfer import classification
from transfer.head import Head, trunk_rates

CPU = torch.device("cpu")
PLAIN = Architecture(norm="none")  # without LRN the trunk is homogeneous, but for its biases
METADATA = {"method": "mine", "variant": "", "supervision": "test"}


def he_filled(seed: int) -> AlexNet:
    torch.manual_seed(seed)
    trunk = AlexNet(PLAIN)
    for conv in trunk.convs():
        torch.nn.init.kaiming_normal_(conv.weight)
        torch.nn.init.uniform_(conv.bias, -0.5, 0.5)
    return trunk


def reparametrised(trunk: AlexNet, scales: tuple[float, ...]) -> AlexNet:
    """The same function but for its scale: layer k's output is multiplied by scales[k]."""
    same = AlexNet(PLAIN)
    before = 1.0
    with torch.no_grad():
        for old, new, scale in zip(trunk.convs(), same.convs(), scales, strict=True):
            new.weight.copy_(old.weight * scale / before)
            new.bias.copy_(old.bias * scale)
            before = scale
    return same


def scores(trunk: AlexNet, path: Path, tiny: Path, recipe: classification.Recipe) -> Tensor:
    save_encoder(path / "encoder.safetensors", trunk, METADATA)
    encoder = read_encoder(path / "encoder.safetensors")
    work = path / "work"
    work.mkdir()
    outcome = classification.evaluate(encoder, recipe, tiny / "VOCdevkit", seed=0, work=work, device=CPU)
    return torch.from_numpy(outcome.per_image["scores"])


def test_encoders_that_differ_in_scales_alone_get_the_same_scores(tiny: Path, tmp_path: Path) -> None:
    """Else a score says how near an encoder's scales lie to what a solver likes. Powers of two: no rounding differs."""
    recipe = dataclasses.replace(
        classification.RECIPES["tiny"], width=32, iterations=5, batch=4, crops=1, rate=1e-2, decay=0.0
    )
    plain, other = he_filled(0), reparametrised(he_filled(0), (2**-7, 2**-2, 16.0, 0.5, 8.0))
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), (tmp_path / "c").mkdir()
    one, two = scores(plain, tmp_path / "a", tiny, recipe), scores(other, tmp_path / "b", tiny, recipe)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    with pytest.raises(Failed, match="the loss is nan"):  # with one rate for all
        scores(other, tmp_path / "c", tiny, dataclasses.replace(recipe, trunk_rate=None))


def test_one_step_changes_all_layers_by_about_the_same_share() -> None:
    trunk, images = reparametrised(he_filled(1), (1e-2, 0.3, 20.0, 0.5, 8.0)), 60 * torch.randn(4, 3, 99, 99)
    rates = trunk_rates(trunk, lambda: trunk(images), times=1.0, prefix="", seed=0)
    trunk(images).square().sum().backward()
    shares = [float(rates[f"conv{k}.weight"] * conv.weight.grad.norm() / conv.weight.norm())  # type: ignore[union-attr]
              for k, conv in enumerate(trunk.convs(), start=1)]  # fmt: skip
    assert max(shares) / min(shares) < 4  # with one rate for all: 1e7
    assert set(rates) == set(trunk.state_dict())


def test_the_order_of_images_changes_nothing() -> None:
    """Tasks run the trunk image by image; a blank last one must not decide for the biases."""
    trunk, images = he_filled(3), 60 * torch.randn(2, 3, 99, 99)
    images[1] = 0.0
    one, two = (
        trunk_rates(trunk, lambda order=order: torch.cat([trunk(images[i : i + 1]) for i in order]),  # type: ignore[misc]
                    times=1.0, prefix="", seed=0)
        for order in ((0, 1), (1, 0))
    )  # fmt: skip
    biases = [name for name in one if name.endswith("bias")]
    shares = [two[name] / two[name.replace("bias", "weight")] for name in biases]
    assert [one[name] / one[name.replace("bias", "weight")] for name in biases] == pytest.approx(shares)
    assert one["conv1.bias"] == pytest.approx(one["conv1.weight"] * float(images.square().mean()), rel=1e-5)


def test_a_layer_that_hardly_any_gradient_reaches_is_bounded() -> None:
    trunk, images = he_filled(4), 60 * torch.randn(2, 3, 99, 99)
    with torch.no_grad():
        trunk.conv4.bias.fill_(-1e3)
        trunk.conv4.bias[0] = 10.0
        trunk.conv5.weight[:, 0] *= 1e-12
    rates = trunk_rates(trunk, lambda: trunk(images), times=1.0, prefix="", seed=0)
    steps = {
        name: rates[f"{name}.weight"] / float(getattr(trunk, name).weight.norm()) ** 2 for name in ("conv1", "conv5")
    }
    assert steps["conv1"] <= steps["conv5"] * 1001


def test_gradients_that_are_not_finite_are_an_error() -> None:
    trunk = he_filled(5)
    with pytest.raises(Failed, match="not finite"):
        trunk_rates(trunk, lambda: trunk(torch.full((1, 3, 99, 99), 1e38)), times=1.0, prefix="", seed=0)


def test_a_layer_without_gradient_stays_as_it_is() -> None:
    trunk = he_filled(2)
    torch.nn.init.zeros_(trunk.conv4.weight)
    torch.nn.init.constant_(trunk.conv4.bias, -1.0)  # dead: nothing reaches conv1–conv4
    rates = trunk_rates(trunk, lambda: trunk(torch.randn(2, 3, 99, 99)), times=1.0, prefix="t.", seed=0)
    assert [rates[f"t.conv{k}.weight"] for k in (1, 2, 3, 4)] == [0.0] * 4
    assert all(value == value for value in rates.values())  # no NaN


def test_preparing_standardises_channels_and_calibrates_units(encoder: Encoder) -> None:
    torch.manual_seed(0)
    head = Head(channels=3, side=2, width=16, prepared=True).eval()
    x = torch.randn(500, 3, 2, 2) * torch.tensor([5.0, 1e-3, 0.0])[:, None, None] + 7
    head.prepare(lambda: head(x))
    inside = head.standardise(x).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(inside.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(inside.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-3, atol=1e-3)
    units = head.fc6(head.standardise(x).flatten(1))
    torch.testing.assert_close(units.std(0, correction=0), torch.ones(16), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(units.mean(0), torch.full((16,), 0.1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("recipe", ["paper", "paper-fc6-8"])
def test_published_recipes_are_not_prepared(recipe: str) -> None:
    chosen = classification.RECIPES[recipe]
    assert (chosen.calibrated, chosen.trunk_rate, chosen.dropout, chosen.clip) == (False, None, 0.5, 10.0)
