"""Weights of torch, numpy and safetensors become encoders; the command; the known files; the table and the tasks."""

import hashlib
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from benchmarks import weights as known_weights
from benchmarks.cli import main
from benchmarks.commands import last_encoder
from benchmarks.published import published
from benchmarks.weights import Known, known_files
from pretrain import METHODS
from pretrain import npy as arrays
from pretrain.alexnet import MEAN_RGB, AlexNet, Architecture, Encoder, described, load_encoder, read_encoder
from pretrain.files import Failed, Missing
from pretrain.foreign import Reading, import_weights, our_pixels

WIDTHS = (8, 16, 12, 12, 8)
TORCHVISION = Reading(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


class Exploit:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.write_text, (self.mark, "executed")


def tensors(architecture: Architecture | None = None) -> dict[str, torch.Tensor]:
    """Ten tensors, named as ours, of a trunk that keeps its input's scale."""
    torch.manual_seed(1)
    shapes = (architecture or Architecture(widths=WIDTHS)).shapes()
    return {n: torch.randn(s) / math.sqrt(math.prod(s[1:])) for n, s in shapes.items()}


def trunk_of(path: Path, reading: Reading | None = None) -> AlexNet:
    encoder = read_encoder(import_weights(path, out=path.parent / "e.safetensors", method="context", reading=reading))
    trunk = AlexNet(encoder.architecture)
    assert load_encoder(trunk, encoder).loaded == 10
    return trunk


def fails(path: Path) -> str:
    out = path.parent / "e.safetensors"
    with pytest.raises(Failed) as caught:
        import_weights(path, out=out, method="context")
    assert not out.exists()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numpy_of(found: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in found.items()}


def object_npy(path: Path, value: Any) -> None:
    np.save(path, np.array(value, dtype=object), allow_pickle=True)


def write(path: Path, found: dict[str, torch.Tensor]) -> None:
    """`found` in the format of the path's name, under names that the format's users give."""
    renamed = {name.replace(".weight", "_w").replace(".bias", "_b"): t for name, t in found.items()}
    match path.name:
        case "a.pth":
            torch.save(found, path)
        case "old.pth":
            torch.save(found, path, _use_new_zipfile_serialization=False)
        case "a.pth.tar":
            torch.save({"epoch": 3, "best": 0.5, "state_dict": {f"module.{n}": t for n, t in found.items()}}, path)
        case "parameters.pt":
            torch.save({n: nn.Parameter(t) for n, t in found.items()}, path)
        case "a.safetensors":
            save_file({f"encoder.{n}": t for n, t in found.items()}, path)
        case "a.npz":
            np.savez(path, **numpy_of(renamed))
        case "dict.npy":
            object_npy(path, numpy_of(renamed))
        case "lists.npy":  # conv1: [weight, bias]
            layers = {f"conv{k}": [found[f"conv{k}.{p}"].numpy() for p in ("weight", "bias")] for k in range(1, 6)}
            object_npy(path, layers)
        case "blobs.pkl":
            path.write_bytes(pickle.dumps({"blobs": numpy_of(renamed)}, protocol=2))


FORMATS = (
    "a.pth",
    "old.pth",
    "a.pth.tar",
    "parameters.pt",
    "a.safetensors",
    "a.npz",
    "dict.npy",
    "lists.npy",
    "blobs.pkl",
)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_its_names(tmp_path, name):
    write(tmp_path / name, tensors())
    state = trunk_of(tmp_path / name, Reading(norm="lrn")).state_dict()
    assert all(torch.equal(state[n], t) for n, t in tensors().items())


@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_file_fails_in_one_line(tmp_path, name):
    path = tmp_path / name
    write(path, tensors())
    content = path.read_bytes()
    for size in (0, 1, 7, 60, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        fails(path)


def torchvision_alexnet(path: Path) -> nn.Module:
    """torchvision's, untrained; what its features hold is saved to `path` (the rest is 230 MB of fc)."""
    torch.manual_seed(0)
    net = torchvision.models.alexnet(weights=None, num_classes=2).eval()
    torch.save({name: t.clone() for name, t in net.state_dict().items() if name.startswith("features.")}, path)
    return net


def test_torchvision_s_alexnet_with_its_preprocessing(tmp_path):
    """Its conv1 is padded with 2, where its zeros are another colour than ours: relu5 is the same there too."""
    theirs = torchvision_alexnet(tmp_path / "a.pth")
    ours = trunk_of(tmp_path / "a.pth", TORCHVISION)
    assert ours.architecture == Architecture((64, 192, 384, 256, 256), (1,) * 5, "none", 0.0, (0.675, -0.72, -0.47))
    image = torch.randint(0, 256, (1, 3, 227, 227), generator=torch.Generator().manual_seed(3)).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (TORCHVISION.mean, TORCHVISION.std))
    with torch.no_grad():
        theirs.features[0].padding = (0, 0)  # no border: equal everywhere
        expected = theirs.features[:12]((image - mean) / std)
        close = {"rtol": 1e-3, "atol": 1e-5 * float(expected.max())}
        torch.testing.assert_close(ours.features(image - torch.tensor(MEAN_RGB).view(1, 3, 1, 1)), expected, **close)
        theirs.features[0].padding = ours.conv1.padding = (2, 2)
        image = image[..., :224, :224]  # where both round the poolings alike
        expected = theirs.features[:12]((image - mean) / std)
        torch.testing.assert_close(ours.features(image - torch.tensor(MEAN_RGB).view(1, 3, 1, 1)), expected, **close)


@pytest.mark.parametrize("pad", [2, 5, 20, 100])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_task_s_padding_is_the_source_s_own_zero(pad, order, tmp_path):
    """conv1 of an imported encoder, padded as the tasks pad it, against the source's (x - mean) / std."""
    draws = torch.Generator().manual_seed(pad)
    mean, std = (tuple(torch.rand(3, generator=draws).mul(s).add(a).tolist()) for s, a in ((120, 60), (60, 20)))
    found = tensors()
    torch.save(found, tmp_path / "a.pth")
    architecture = trunk_of(tmp_path / "a.pth", Reading(order=order, mean=mean, std=std)).architecture
    ours = AlexNet(architecture, conv1_pad=pad)
    load_encoder(ours, read_encoder(tmp_path / "e.safetensors"))
    image = torch.randint(0, 256, (2, 3, 131, 96), generator=draws).double()
    pixels = (image - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(std).double().view(1, 3, 1, 1)
    pixels = pixels.flip(1) if order == "bgr" else pixels
    expected = F.conv2d(pixels, found["conv1.weight"].double(), found["conv1.bias"].double(), stride=4, padding=pad)
    with torch.no_grad():
        got = ours.conv1((image - torch.tensor(MEAN_RGB).double().view(1, 3, 1, 1)).float())
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    zeros = F.conv2d((image - torch.tensor(MEAN_RGB).double().view(1, 3, 1, 1)).float(), ours.conv1.weight,
                     ours.conv1.bias, stride=4, padding=pad)  # fmt: skip
    assert (zeros - expected).abs().max() > 0.02 * expected.abs().max()  # what it was


def test_the_padding_is_built_into_every_task_and_every_file(standard, tmp_path):
    from transfer import fast_rcnn, fcn, segmentation

    assert standard.architecture.pad_value == (0.675, -0.72, -0.47)
    trunks = [fast_rcnn.Trunk(standard.architecture).trunk]
    trunks.append(fcn.Backbone(segmentation.RECIPES["tiny"], standard.architecture).trunk)
    for trunk in trunks:
        assert load_encoder(trunk, standard).loaded == 10
        assert trunk.conv1.fill == (0.675, -0.72, -0.47)
        trunk.conv1(torch.zeros(1, 3, 64, 64)).sum().backward()
        assert trunk.conv1.weight.grad is not None
    record = json.loads(json.dumps(standard.architecture.record()))
    assert described(record) == standard.architecture
    assert "pad_value" not in Architecture().record()
    assert described({k: v for k, v in record.items() if k != "pad_value"}).pad_value == (0, 0, 0)  # an older file
    with pytest.raises(ValueError, match="pad_value"):
        described(record | {"pad_value": [math.nan, 0, 0]})


def test_the_bias_takes_the_difference_of_the_means():
    """One pixel of the source's mean gives the bias alone."""
    weight, bias = torch.randn(4, 3, 11, 11), torch.randn(4)
    mean, std = (100.0, 110.0, 90.0), (50.0, 40.0, 30.0)
    ours, shifted = our_pixels(weight, bias, order="bgr", mean=mean, std=std)
    image = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 11, 11)
    out = F.conv2d(image - torch.tensor(MEAN_RGB, dtype=torch.float64).view(1, 3, 1, 1), ours, shifted)
    torch.testing.assert_close(out.flatten(), bias.double())


def batch_normed() -> nn.Sequential:
    """RotNet's kind: convolution without bias, BatchNorm, ReLU."""
    torch.manual_seed(4)
    layers: list[nn.Module] = []
    channels = zip((3, *WIDTHS), WIDTHS, (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (0, 2, 1, 1, 1), strict=False)
    for k, (inputs, outputs, side, stride, pad) in enumerate(channels):
        norm = nn.BatchNorm2d(outputs)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 1, 2)
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias)
        conv = nn.Conv2d(inputs, outputs, side, stride, pad, bias=False)
        layers += [nn.Sequential(conv, norm, nn.ReLU()), nn.MaxPool2d(3, 2, ceil_mode=True) if k < 2 else nn.Identity()]
    return nn.Sequential(*layers).eval()


def test_batch_norm_of_torch_is_folded(tmp_path, capsys):
    source = batch_normed()
    torch.save({"network": source.state_dict()}, tmp_path / "a.pth")
    ours = trunk_of(tmp_path / "a.pth")
    image = torch.randn(1, 3, 227, 227)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(image), source(image), rtol=1e-3, atol=1e-4)
    assert "folded into conv5" in capsys.readouterr().err


def test_batch_norms_that_are_stored_behind_all_convolutions(tmp_path):
    source, state = batch_normed(), {}
    for kind in ("conv", "bn"):
        for k in range(5):
            pair = source[2 * k]
            module = pair[0] if kind == "conv" else pair[1]
            state |= {f"{kind}{k + 1}.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    image = torch.randn(1, 3, 227, 227)
    with torch.no_grad():
        torch.testing.assert_close(trunk_of(tmp_path / "a.pth").features(image), source(image), rtol=1e-3, atol=1e-4)


def test_norm_is_said_or_assumed_aloud(tmp_path, capsys):
    torch.save(tensors(), tmp_path / "a.pth")
    assert trunk_of(tmp_path / "a.pth").architecture.norm == "none"
    assert "taken as 'none' (--norm lrn" in capsys.readouterr().err
    assert trunk_of(tmp_path / "a.pth", Reading(norm="lrn-before-pool")).architecture.norm == "lrn-before-pool"
    caffenet = Architecture()
    torch.save(tensors(caffenet), tmp_path / "b.pth")
    assert trunk_of(tmp_path / "b.pth").architecture == caffenet


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv3.bias": None}, "missing conv3.bias"),
        ({"conv4.weight": None, "conv4.bias": None}, "missing conv4.weight"),
        ({"conv1.weight": torch.zeros(8, 2, 11, 11)}, "Sobel input is not supported"),
        ({"conv2.weight": torch.zeros(16, 8, 7, 7)}, "(N, 8/groups, 5, 5)"),
        ({"conv5.bias": torch.zeros(3)}, "conv5.bias is (3,), not (8,)"),
        ({"conv3.weight": torch.full((12, 16, 3, 3), math.nan)}, "conv3.weight holds NaN"),
        ({"conv3.weight": torch.full((12, 16, 3, 3), 1e300, dtype=torch.float64)}, "infinite"),
        ({"conv3.weight": torch.ones((12, 16, 3, 3), dtype=torch.int64)}, "int64"),
        ({"conv1.weight": torch.zeros(1).expand(2**40, 3, 11, 11)}, "shows 399,122,720,882,688 numbers and holds 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(tmp_path, change, said):
    found = {name: change.get(name, tensor) for name, tensor in tensors().items()}
    torch.save({name: tensor for name, tensor in found.items() if tensor is not None}, tmp_path / "a.pth")
    assert said in fails(tmp_path / "a.pth")


def test_two_trunks_are_not_chosen_from(tmp_path):
    found = {f"{tower}.{name}": tensor for tower in ("query", "key") for name, tensor in tensors().items()}
    torch.save(found, tmp_path / "a.pth")
    assert "2 trunks in it ('query.', 'key.')" in fails(tmp_path / "a.pth")


def test_another_network_fails(tmp_path):
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "a.pth")
    assert "no conv1–conv5 by name" in fails(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", ["t7", "h5", "zip", "txt", "onnx"])
def test_other_formats_are_named(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"something")
    fails(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.npy", "a.npz", "a.pkl", "a.safetensors", "a.caffemodel"])
def test_no_payload_is_executed(tmp_path, name):
    path, mark = tmp_path / name, tmp_path / "mark"
    payload = {**tensors(), "x": Exploit(mark)}
    if name.endswith("pth"):
        torch.save(payload, path, _use_new_zipfile_serialization=name == "a.pth")
    elif name == "a.npy":
        object_npy(path, payload)
    elif name == "a.npz":
        np.savez(path, allow_pickle=True, x=np.array([Exploit(mark)], dtype=object))
    else:
        path.write_bytes(pickle.dumps(payload))
    fails(path)
    assert not mark.exists()


def test_a_npy_that_claims_more_than_it_holds(tmp_path):
    path = tmp_path / "a.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 8), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    fails(path)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.write(path, "conv1_w.npy")
    fails(tmp_path / "b.npz")


def test_a_npz_that_unpacks_to_more_than_any_trunk(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "LARGEST", 10_000)
    np.savez_compressed(tmp_path / "a.npz", conv1_w=np.zeros(10_000, np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    assert "when unpacked" in fails(tmp_path / "a.npz")


# The command and the table.


def bench(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(tensors(), tmp_path / "a.pth")
    return tmp_path


def test_the_command_writes_an_encoder_and_makes_it_the_last(here, capsys):
    assert bench("import", "a.pth", "--method", "context", "--variant", "mine", "--std", "2", "--mean", 1, 2, 3) == 0
    out = Path(capsys.readouterr().out.strip())
    assert out.parts[:2] == ("runs", "import")
    assert out.parts[2].startswith("context-mine-")
    assert last_encoder(Path("runs")) == out
    said = read_encoder(out).provenance
    assert (said["method"], said["variant"], said["supervision"]) == ("context", "mine", "context")
    source = said["source"]
    assert (source["file"], source["order"], source["mean"], source["std"]) == ("a.pth", "rgb", [1, 2, 3], [2, 2, 2])
    assert source["sha256"] == hashlib.sha256(Path("a.pth").read_bytes()).hexdigest()


def test_an_encoder_outside_of_runs_is_the_last_too(here, capsys):
    assert bench("import", "a.pth", "--method", "my-own", "--out", "elsewhere/e.safetensors") == 0
    assert capsys.readouterr().out == "elsewhere/e.safetensors\n"
    encoder = read_encoder(last_encoder(Path("runs")))
    assert encoder.provenance["supervision"] == "imported"


def test_how_many_classes_imported_labels_were_is_not_made_up(here, capsys):
    assert bench("import", "a.pth", "--method", "labels", "--variant", "mine") == 0
    assert read_encoder(Path(capsys.readouterr().out.strip())).provenance["supervision"] == "class labels"


def test_another_reading_is_another_place(here, capsys):
    for order in ("rgb", "bgr"):
        assert bench("import", "a.pth", "--method", "x", "--order", order) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 2


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.pth"], ["a.pth", "--method", "x", "--std", "1", "2"], ["a.pth", "--known", "nothing"]],
    ids=str,
)
def test_wrong_usage(here, arguments):
    assert bench("import", *arguments) == 2


@pytest.mark.parametrize("method", ["", "../x", "a/b", "-x", "ä b"])
def test_a_row_s_name_is_fit_for_a_path(here, method):
    with pytest.raises(SystemExit) as caught:
        bench("import", "a.pth", "--method", method)
    assert caught.value.code == 2


def test_no_such_file(here, capsys):
    assert bench("import", "b.pth", "--method", "x") == 3
    assert "b.pth: no such file" in capsys.readouterr().err


def known(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    entry = {"name": "mine", "method": "bigan", "variant": "v", "title": "Mine", "urls": (), "source": "here",
             "remarks": "Nothing.", "file": "a.pth", "supervision": "adversarial", "order": "bgr", "norm": "lrn",
             "mean": (1.0, 2.0, 3.0), "std": (2.0,) * 3} | changed  # fmt: skip
    monkeypatch.setattr(known_weights, "known_files", lambda: {"mine": Known(**entry)})


def test_a_known_file_is_recognised_by_its_checksum(here, capsys, monkeypatch):
    known(monkeypatch, sha1=hashlib.sha1(Path("a.pth").read_bytes()).hexdigest())
    assert bench("import", "a.pth") == 0
    out, err = capsys.readouterr()
    assert "recognised by its checksum as 'mine'" in err
    encoder = read_encoder(Path(out.strip()))
    assert encoder.architecture.norm == "lrn"
    assert encoder.provenance["supervision"] == "adversarial"
    source = encoder.provenance["source"]
    assert (source["order"], source["mean"], source["std"]) == ("bgr", [1, 2, 3], [2, 2, 2])


def test_a_recognised_file_keeps_its_supervision_under_another_name(here, capsys, monkeypatch):
    known(monkeypatch, sha1=hashlib.sha1(Path("a.pth").read_bytes()).hexdigest())
    assert bench("import", "a.pth", "--method", "imagenet-mine") == 0
    said = read_encoder(Path(capsys.readouterr().out.strip())).provenance
    assert (said["method"], said["variant"], said["supervision"]) == ("imagenet-mine", "", "adversarial")


def test_a_known_file_s_checksum_must_agree(here, capsys, monkeypatch):
    known(monkeypatch, md5="0" * 32)
    assert bench("import", "a.pth", "--known", "mine") == 1
    assert "its checksum is not that of 'mine'" in capsys.readouterr().err


def test_what_is_given_goes_before_what_is_known(here, capsys, monkeypatch):
    known(monkeypatch)
    assert bench("import", "a.pth", "--known", "mine", "--method", "moco", "--order", "rgb") == 0
    said = read_encoder(Path(capsys.readouterr().out.strip())).provenance
    assert (said["method"], said["variant"], said["source"]["order"]) == ("moco", "", "rgb")


def test_a_known_file_that_cannot_be_imported_says_why(here, capsys, monkeypatch):
    known(monkeypatch, importable=False, remarks="Takes Lab.")
    assert bench("import", "a.pth", "--known", "mine") == 1
    assert "Takes Lab." in capsys.readouterr().err


def test_the_list_names_every_known_file(capsys):
    assert bench("import", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(known_files())
    assert all(line.count("|") == 8 for line in lines)


def test_the_known_files_are_whole():
    for entry in known_files().values():
        sums = {"sha256": 64, "sha1": 40, "md5": 32}
        assert all(len(getattr(entry, kind)) in (0, size) for kind, size in sums.items()), entry.name
        assert all(url.startswith(("http://", "https://")) for url in entry.urls), entry.name
        assert not entry.urls or entry.file, entry.name
        assert entry.order in (None, "rgb", "bgr")
        assert entry.norm in (None, "lrn", "lrn-before-pool", "none")
        assert all(value is None or len(value) == 3 for value in (entry.mean, entry.std)), entry.name


def test_a_known_file_makes_a_row_of_its_own():
    """None takes the name of a row that is trained here, which `bench import` refuses; ImageNet's say their labels."""
    for entry in known_files().values():
        if entry.importable:
            assert entry.method not in METHODS or entry.variant, entry.name
        assert entry.method != "labels" or entry.supervision == "1000 class labels", entry.name
    named = {row["method"]: row["variants"] for row in published("table2")}
    stand = {name for name, entry in known_files().items() if entry.variant in named.get(entry.method, [])}
    assert stand == {"context-encoder", "caffenet", "wang-color", "doersch"}  # the authors' own networks


@pytest.fixture
def standard(tmp_path: Path) -> Encoder:
    """torchvision's AlexNet, imported."""
    torchvision_alexnet(tmp_path / "a.pth")
    path = import_weights(tmp_path / "a.pth", out=tmp_path / "e.safetensors", method="labels", reading=TORCHVISION)
    return read_encoder(path)


def test_every_task_takes_an_imported_trunk_whole(standard, tiny, tmp_path):
    from transfer import classification, fast_rcnn, segmentation
    from transfer.detection import RECIPES as DETECTION

    device = torch.device("cpu")
    model, receipt = classification.build(standard, classification.RECIPES["tiny"], seed=0, device=device)
    assert (receipt.loaded, receipt.expected) == (10, 10)
    assert model(torch.zeros(1, 3, 227, 227)).shape == (1, 20)
    statistics = {"means": torch.zeros(20, 4), "stds": torch.ones(20, 4)}
    rcnn = fast_rcnn.build(DETECTION["tiny"], seed=0, architecture=standard.architecture, **statistics)
    receipt = load_encoder(rcnn.backbone.trunk, standard)
    assert (receipt.loaded, receipt.expected) == (10, 10)
    assert rcnn.backbone(torch.zeros(1, 3, 160, 200))["conv5"].shape[:2] == (1, 256)
    runner = segmentation.build_runner(segmentation.RECIPES["tiny"], tiny / "VOCdevkit", seed=0, work=tmp_path,
                                       device=device, architecture=standard.architecture)  # fmt: skip
    receipt = load_encoder(runner.model.backbone.trunk, standard)
    assert (receipt.loaded, receipt.expected) == (10, 10)


def test_the_table_has_a_row_for_it(tmp_path, capsys):
    """A result of an imported encoder: its time is "imported", and two files are not two seeds of one row."""
    torch.save(tensors(), tmp_path / "a.pth")
    template = next(Path(__file__).parent.parent.joinpath("results/quick/random").glob("classification-seed0.json"))
    for seed, order in enumerate(("rgb", "bgr")):
        reading = Reading(order=order)
        path = import_weights(tmp_path / "a.pth", out=tmp_path / "e.safetensors", method="bigan", reading=reading)
        result = json.loads(template.read_text())
        result |= {"method": "bigan", "seed": seed}
        result["encoder"]["provenance"] = read_encoder(path).provenance | {"hardware": "the importing machine"}
        place = tmp_path / "results" / "quick" / "bigan" / f"classification-seed{seed}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(result))
    assert bench("table2", "--results", tmp_path / "results") == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| bigan")]
    assert [row[2].strip() for row in rows] == ["imported", "imported"]
    assert [row[3].strip() for row in rows] == ["imported", "imported"]
    assert [row[4].strip() for row in rows] == ["–", "–"]  # not the machine that imported it
    assert all("(1)" in row[5] for row in rows)


def test_missing_is_missing(tmp_path):
    with pytest.raises(Missing):
        import_weights(tmp_path / "a.pth", out=tmp_path / "e.safetensors", method="x")


@pytest.mark.parametrize("method", ["random", "context", "context-random-region"])
def test_rows_that_are_trained_here_are_not_imported(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(tensors(), "a.pth")
    assert bench("import", "a.pth", "--method", method) == 2
    assert "trained here" in capsys.readouterr().err
    assert bench("import", "a.pth", "--method", method.split("-")[0], "--variant", "theirs") == 0


def test_a_known_name_wants_its_own_file(tmp_path, monkeypatch, capsys):
    """Another file is not taken for it, whatever its suffix."""
    monkeypatch.chdir(tmp_path)
    torch.save(tensors(), "a.pth")
    assert bench("import", "a.pth", "--known", "caffenet") == 1
    assert "its checksum is not that of 'caffenet'" in capsys.readouterr().err


def test_a_mean_of_pixels_from_0_to_1_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(tensors(), "a.pth")
    assert bench("import", "a.pth", "--method", "x", "--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225) == 2
    assert "multiply yours by 255" in capsys.readouterr().err


def test_every_known_address_is_in_the_list(capsys):
    assert bench("import", "--list") == 0
    listed = capsys.readouterr().out
    for known in known_files().values():
        assert all(url in listed for url in known.urls)
