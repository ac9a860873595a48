"""How an encoder starts, and what is seen of its layers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain import METHODS, Folders, method_module
from pretrain.alexnet import AlexNet, Architecture, Encoder, load_encoder, read_encoder
from pretrain.files import Usage
from pretrain.images import batches
from pretrain.layers import layer_statistics
from pretrain.pretext import Pretext
from pretrain.randomness import reseed
from pretrain.train import Config, configure, finished, pretrain

CPU = torch.device("cpu")
NARROW = Architecture(widths=(8, 16, 16, 16, 256))  # whose filters k-means finds soon
PLAIN = Config(method="context", mask="central", loss="l2", iterations=0, batch=8, rate=1e-4, seed=0)


@pytest.fixture(scope="module")
def started(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    """The encoder at each start, with nothing trained."""
    runs, folders = tmp_path_factory.mktemp("starts"), Folders(images=(tiny / "images",))
    configs = {start: replace(PLAIN, start=start) for start in ("", "scaled", "kmeans")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.context.AlexNet", lambda: AlexNet(NARROW))
        made = {start: pretrain(config, folders=folders, runs=runs, device=CPU) for start, config in configs.items()}
    assert all(finished(configs[start], folders=folders, runs=runs) == path for start, path in made.items())
    return {start: read_encoder(path) for start, path in made.items()}


@pytest.fixture(scope="module")
def batch(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The first of the run."""
    source = method_module("context").source(Folders(images=(tiny / "images",)))
    data = source.open(tmp_path_factory.mktemp("stores"))
    (found,) = batches(data, batch=8, seed=0, start=0, stop=1, device=CPU)
    return torch.as_tensor(found)


def outputs(encoder: Encoder, images: torch.Tensor) -> list[torch.Tensor]:
    """What conv1 … conv5 give, a row a channel."""
    trunk, found = AlexNet(NARROW), []
    load_encoder(trunk, encoder)
    for conv in trunk.convs():
        conv.register_forward_hook(lambda _module, _inputs, output: found.append(output.transpose(0, 1).flatten(1)))
    with torch.no_grad():
        trunk(images)
    return found


def test_a_start_is_a_row_and_a_folder_of_its_own(started: dict[str, Encoder]) -> None:
    said = {start: encoder.provenance for start, encoder in started.items()}
    variants = {start: found["variant"] for start, found in said.items()}
    assert variants == {"": "central", "scaled": "central-scaled-start", "kmeans": "central-kmeans-start"}
    assert {start: found["start"] for start, found in said.items()} == {start: start for start in started}
    assert [encoder.path.parent.name.rpartition("-")[0] for encoder in started.values()] == [
        "context-central", "context-central-scaled-start", "context-central-kmeans-start"
    ]  # fmt: skip


def test_the_default_is_caffes_fillers(started: dict[str, Encoder]) -> None:
    reseed(PLAIN.seed, "initialisation")
    filled = AlexNet(NARROW).state_dict()  # which is built first
    assert all(torch.equal(filled[name], tensor) for name, tensor in started[""].tensors.items())


def test_scaled_is_the_same_filters_at_other_scales(started: dict[str, Encoder], batch: torch.Tensor) -> None:
    for k in range(1, 6):
        ours, filled = (started[start].tensors[f"conv{k}.weight"].flatten(1) for start in ("scaled", ""))
        assert torch.nn.functional.cosine_similarity(ours, filled).min() > 1 - 1e-5
    for found in outputs(started["scaled"], batch):
        torch.testing.assert_close(found.std(1, correction=0), torch.ones(len(found)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.mean(1), torch.full((len(found),), 0.1), rtol=1e-3, atol=1e-3)


def test_kmeans_is_other_filters(started: dict[str, Encoder]) -> None:
    for k in range(1, 6):
        ours, filled = (started[start].tensors[f"conv{k}.weight"].flatten(1) for start in ("kmeans", ""))
        assert torch.nn.functional.cosine_similarity(ours, filled).abs().median() < 0.5


def test_methods_without_other_starts_refuse_them(tiny: Path) -> None:
    folders = Folders(images=(tiny / "images",), videos=(tiny / "videos",))
    takes = {name: module.STARTS for name in METHODS if (module := method_module(name)).STARTS}
    assert takes == {"context": ("scaled", "kmeans"), "autoencoder": ("scaled", "kmeans")}
    for name, said in (("relative", "no other start"), ("random", "no other start")):
        with pytest.raises(Usage, match=f"^--start scaled: method {name} takes {said}$"):
            configure(name, folders=folders, budget="tiny", start="scaled")
    with pytest.raises(Usage, match=r"^--start warm: method context takes scaled, kmeans$"):
        configure("context", folders=folders, budget="tiny", start="warm")
    with pytest.raises(Usage, match="this method has one start"):
        Pretext().begin(torch.zeros(1), "scaled")


# ---- what is seen of the layers ----


def test_the_statistics_of_layers_by_hand() -> None:
    """Two images of one colour each, 1 and -1; conv1 gives -1, 2, ±1 and ∓2, the others nothing."""
    trunk = AlexNet(Architecture(widths=(4,) * 5))
    images = torch.ones(2, 3, 227, 227)
    images[1] = -1
    with torch.no_grad():
        for conv in trunk.convs():
            conv.weight.zero_()
            conv.bias.zero_()  # type: ignore[union-attr]
        trunk.conv1.bias.copy_(torch.tensor([-1.0, 2.0, 0.0, 0.0]))  # type: ignore[union-attr]
        trunk.conv1.weight[2], trunk.conv1.weight[3] = 1 / 363, -2 / 363
    trunk.conv1.weight.grad = 3 * trunk.conv1.weight.detach()
    found = layer_statistics(trunk, images, trained=trunk)
    # Behind the ReLU: 0 0, 2 2, 1 0 and 0 2: mean 7/8, variance 13/8 - 49/64; a channel's between images: 0, 0, 1/4, 1.
    assert found["conv1"] == pytest.approx(
        {
            "mean": 7 / 8,
            "deviation": (55 / 64) ** 0.5,
            "between_images": 20 / 55,
            "dead": 1 / 4,
            "constant": 1 / 4,
            "gradient": 3.0,
        },
        abs=2e-6,
    )
    nothing = {"mean": 0.0, "deviation": 0.0, "between_images": 0.0, "dead": 1.0, "constant": 0.0, "gradient": None}
    assert all(found[f"conv{k}"] == nothing for k in range(2, 6))
    learning = AlexNet(Architecture(widths=(4,) * 5))  # what has the norms apart that `trunk` has folded in
    learning.conv3.weight.grad = 2 * learning.conv3.weight.detach()
    gradients = [one["gradient"] for one in layer_statistics(trunk, images, trained=learning).values()]
    assert gradients == [None, None, pytest.approx(2.0), None, None]


def test_looking_at_layers_leaves_no_trace() -> None:
    torch.manual_seed(0)
    trunk = AlexNet(Architecture(widths=(4,) * 5))
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    random = torch.get_rng_state()
    images = torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    layer_statistics(trunk, images, trained=trunk)
    assert all(torch.equal(before[name], tensor) for name, tensor in trunk.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(conv.weight.grad is None and not conv._forward_hooks for conv in trunk.convs())
