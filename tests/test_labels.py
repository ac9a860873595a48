"""The ImageNet labels row: which image is of which class, what is trained on them, and what it then knows."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cli
from pretrain import Folders, Solver
from pretrain.alexnet import read_encoder
from pretrain.files import Failed, Missing, Usage
from pretrain.images import centre_crop, crop_and_mirror
from pretrain.labels import Classifier, LabelledImages, build, defaults, source
from pretrain.randomness import Draw, generator
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
CLASSES = {"b": (200, 60, 60), "a": (60, 200, 60), "c": (60, 60, 200)}


def plain(path: Path, red: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (red, 0, 0)).save(path)
    return path


def opened(folders: Sequence[Path], cache: Path) -> LabelledImages:
    data = source(Folders(images=tuple(folders))).open(cache)
    assert isinstance(data, LabelledImages)
    return data


def draw(*key: str | int) -> Draw:
    return Draw(generator(0, *key))


def said(error: pytest.ExceptionInfo[Failed], code: int) -> str:
    """The message, which is one line, of an error that exits with `code`."""
    assert error.value.exit_code == code
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- which image is of which class ----


@pytest.mark.parametrize("parted", [False, True])
def test_classes_are_the_folders_in_sorted_order(parted: bool, tmp_path: Path) -> None:
    """Of several folders together, at any depth, past a file that cannot be decoded: red says whose image it is."""
    part = "train/" if parted else ""
    order = ["Bee", "ant", "cat", "zebra"]
    for number, name in enumerate(order):
        for folder in ("one/deep", "two") if number % 2 else ("two", "three/deep"):
            first, _, deeper = folder.partition("/")
            plain(tmp_path / first / f"{part}{name}" / deeper / "1.png", 10 * number)
    (tmp_path / "two" / f"{part}Bee" / "0.png").write_bytes(b"not a picture")
    (tmp_path / "one" / f"{part}empty").mkdir()  # a folder without images is no class
    for name in ("one", "two", "three") if parted else ():
        plain(tmp_path / name / "val" / "cat" / "9.png", 20)
    data = opened([tmp_path / name for name in ("one", "two", "three")], tmp_path / "stores")
    assert (data.classes, data.record["classes"], data.record["skipped"]) == (4, 4, 1)
    pixels, labels = data.read(torch.arange(data.store.images))
    assert len(labels) == 8 + 3 * parted
    assert labels.tolist() == [int(red) // 10 for red in pixels[:, 0, 0, 0]]
    assert len(data.held_out) == 3 * parted


def test_val_is_held_out_and_nothing_else(tmp_path: Path) -> None:
    """Class 0 or 1 by tens, train 0 or val 1 by ones. A class may lie under train alone."""
    for name in ("00", "01", "10"):
        for k in range(2):
            plain(
                tmp_path / "data" / ("val" if name[1] == "1" else "train") / f"class{name[0]}" / f"{k}.png", int(name)
            )
    data = opened([tmp_path / "data"], tmp_path / "stores")
    assert data.read(data.train)[0][:, 0, 0, 0].tolist() == [0, 0, 10, 10]
    assert data.read(data.held_out)[0][:, 0, 0, 0].tolist() == [1, 1]
    assert data.read(data.held_out)[1].tolist() == [0, 0]


@pytest.mark.parametrize("broken", [False, True])
def test_without_val_one_image_in_twenty_of_each_class_is_held_out(broken: bool, tmp_path: Path) -> None:
    """Of two folders that have half of each; also where val holds nothing that can be decoded."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        for name, half in {"x": 10, "y": 20, "z": 10}.items():
            for k in range(half):
                plain(folder / ("train" if broken else "") / name / f"{k}.png")
        if broken:
            (folder / "val" / "x").mkdir(parents=True)
            (folder / "val" / "x" / "0.png").write_bytes(b"")
    data = opened(folders, tmp_path / "stores")
    assert data.labels[data.held_out].bincount().tolist() == [1, 2, 1]
    assert data.labels[data.train].bincount().tolist() == [19, 38, 19]
    assert sorted(data.train.tolist() + data.held_out.tolist()) == list(range(80))


def test_the_row_is_named_after_its_classes_unless_they_are_imagenets_thousand(tmp_path: Path) -> None:
    for k in range(1000):
        path = tmp_path / "thousand" / f"n{k:08d}" / "0.jpg"
        path.parent.mkdir(parents=True)
        path.touch()
    found = source(Folders(images=(tmp_path / "thousand",)))
    assert (found.kind, found.supervision) == ("", "1000 class labels")
    path.unlink()
    found = source(Folders(images=(tmp_path / "thousand",)))
    assert (found.kind, found.supervision) == ("999-classes", "999 class labels")


# ---- what cannot be used ----


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["0.png", "1.png"], "{0}: in no class folder: give --images a folder with one folder a class"),
        (["a/0.png", "b/0.png", "c.png"], "{2}: in no class folder: give --images"),
        (["train/a/0.png", "val/a/0.png", "train/0.png"], "{2}: in no class folder: give --images"),
        (["a/0.png", "a/b/1.png"], "{folder}: one class (a) alone: give --images a folder with one folder a class"),
        (["train/a/0.png", "train/a/1.png"], "{folder}: one class (a) alone: give --images"),
        (["train/a/0.png", "val/a/1.png"], "{folder}: one class (a) alone: give --images"),
        (["a/0.heic", "b/1.txt"], "{folder}: no images here (not looked at: 1 of .heic, 1 of .txt): give --images"),
        ([], "{folder}: no images here: give --images"),
    ],
)
def test_images_without_labels_are_refused(files: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "empty").mkdir(parents=True)
    paths = [folder / name for name in files]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(Missing) as caught:
        source(Folders(images=(folder,)))
    assert said(caught, 3).startswith(message.format(*paths, folder=folder))


def lose(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"not a picture")


def set_aside(folder: Path) -> None:
    """All its images to val."""
    (folder.parents[1] / "val").mkdir()
    folder.rename(folder.parents[1] / "val" / folder.name)


@pytest.mark.parametrize("spoil", [lose, set_aside])
def test_a_class_without_an_image_to_train_on_is_named(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    """Two classes of which one cannot be seen are one class: the loss would fall to nothing, and nothing be learned."""
    for name in ("ant", "bee"):
        for k in range(2):
            plain(tmp_path / "insects" / "train" / name / f"{k}.png")
    spoil(tmp_path / "insects" / "train" / "bee")
    folder = tmp_path / "insects" / ("" if spoil is set_aside else "train")
    with pytest.raises(Missing) as caught:
        opened([folder], tmp_path / "stores")
    name = folder.name
    assert said(caught, 3) == f"{name}: no image to train on of class bee: add some, or remove the folder"


def test_classes_of_which_nothing_can_be_decoded_are_refused(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "insects" / name).mkdir(parents=True)
        (tmp_path / "insects" / name / "0.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(Missing) as caught:
        opened([tmp_path / "insects"], tmp_path / "stores")
    first = tmp_path / "insects" / "ant" / "0.jpg"
    assert said(caught, 3) == (
        f"{tmp_path / 'insects'}: not one of 2 files can be used ({first}: cannot be decoded): give another folder"
    )


def test_labels_have_no_l1_loss() -> None:
    with pytest.raises(Usage) as caught:
        build(None, mask=None, loss="l1", shapes=None)
    assert said(caught, 2) == "--loss l1: labels have a cross-entropy: leave --loss out"


def test_the_command_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = plain(tmp_path / "images" / "ant" / "0.png").parents[1]
    given = ["--images", str(images), "--shapes", str(images), "--runs", str(tmp_path / "runs")]
    for more, code, said in (
        ([], 3, f"{images}: one class (ant) alone: give --images a folder with one folder a class"),
        (["--mask", "central"], 2, "--mask central: method labels takes no mask"),
    ):
        assert cli.main(["pretrain", "--method", "labels", *given, *more]) == code
        assert capsys.readouterr() == ("", f"bench: {said}\n")
    assert not list(tmp_path.glob("runs/pretrain/*"))


# ---- the recipe ----


def test_the_recipe_is_the_released_solver() -> None:
    """Protocols 1.2."""
    recipe = defaults(None)
    assert (recipe.iterations, recipe.batch, recipe.rate, recipe.calibrate) == (450_000, 256, 0.01, False)
    assert recipe.solver == Solver("sgd", momentum=0.9, decay=5e-4, step=100_000, drop=0.1)


def test_crops_of_227_mirrored_half_the_time_keep_their_labels(tmp_path: Path) -> None:
    """Of held-out images the centre. A left half of its own tells which way round an image is."""
    for k in range(40):
        pixels = np.full((256, 256, 3), k, np.uint8)
        pixels[:, :128, 1] = 255
        path = tmp_path / "data" / f"{k % 4}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    data = opened([tmp_path / "data"], tmp_path / "stores")
    raw = data.read(data.train)
    images, labels = data.batch(raw, draw())
    assert images.shape == (38, 3, 227, 227)
    assert torch.equal(images, crop_and_mirror(raw[0], draw(), crop=227))
    numbers = (images[:, 2, 0, 0] + 104).round().long()
    assert sorted(numbers.tolist()) == sorted(raw[0][:, 0, 0, 2].tolist())
    assert labels.tolist() == [int(number) % 4 for number in numbers]
    assert 9 <= (images[:, 1, 0, 0] > images[:, 1, 0, -1]).sum() <= 29  # of 38; three deviations
    raw = data.read(data.held_out)
    images, labels = data.batch(raw, draw(), held_out=True)
    assert torch.equal(images, centre_crop(raw[0], crop=227))
    assert torch.equal(labels, raw[1])


def test_the_network_is_caffenet() -> None:
    """Protocols 1.1: 60,965,224 parameters, and how the fresh layers are filled."""
    torch.manual_seed(0)
    model = Classifier(1000)
    assert sum(p.numel() for p in model.parameters()) == 60_965_224
    for layer, std, bias in ((model.fc6, 0.005, 1.0), (model.fc7, 0.005, 1.0), (model.fc8, 0.01, 0.0)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.01)
        assert layer.bias.eq(bias).all()


# ---- what is counted, on a network of seven classes ----


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(7)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """8×3×227×227, mean-subtracted."""
    return torch.randn(8, 3, 227, 227, generator=torch.Generator().manual_seed(0)) * 50


def test_guesses_are_counted_as_in_a_plain_loop(model: Classifier, photographs: torch.Tensor) -> None:
    """Each image's label is its first, second, … seventh and again first guess."""
    model.train()  # the scores are without dropout all the same
    with torch.no_grad():
        logits = model.logits(photographs, draw(), training=False)
        ranked = [sorted(range(7), key=lambda label, row=row: -row[label]) for row in logits.tolist()]  # type: ignore[misc]
        labels = torch.tensor([guesses[k % 7] for k, guesses in enumerate(ranked)])
        scores = model.scores((photographs, labels), draw("other"))
    right = [guesses.index(label) for guesses, label in zip(ranked, labels.tolist(), strict=True)]
    assert float(scores["top1"]) == sum(place == 0 for place in right) / 8 == 2 / 8
    assert float(scores["top5"]) == sum(place < 5 for place in right) / 8 == 6 / 8
    assert {k: float(v) for k, v in scores.items() if "chance" in k} == pytest.approx(
        {"chance_top1": 1 / 7, "chance_top5": 5 / 7}
    )


def test_the_loss_is_the_sum_of_cross_entropies(model: Classifier, photographs: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    with torch.no_grad():
        logits = model.logits(photographs, draw(), training=False)
        model.eval()
        loss = model((photographs, labels), draw())
        model.train()
        dropped = [model((photographs[:2], labels[:2]), draw(key)).total.item() for key in "aab"]
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = sum(math.log(sum(math.exp(value) for value in row)) - row[label] for row, label in rows)
    assert (loss.total.item(), loss.count.item()) == (pytest.approx(expected, rel=1e-6), 8)
    assert dropped[0] == dropped[1] != dropped[2]  # dropout, drawn from the batch's numbers alone


def test_fresh_layers_are_calibrated_but_for_the_last(model: Classifier, photographs: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = (photographs, torch.zeros(8, dtype=torch.long))
    model.calibrate(batch, draw(), fresh=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    seen = []
    for layer in (model.encoder.conv5, model.fc6, model.fc7):
        layer.register_forward_hook(lambda _, __, output: seen.append(output.movedim(1, -1).flatten(0, -2)))
    model.calibrate(batch, draw(), fresh=True)
    seen.clear()
    with torch.no_grad():
        model.logits(photographs, draw(), training=False)
    for output in seen:
        assert output.mean(0) == pytest.approx(torch.full_like(output[0], 0.1), abs=1e-4)
        assert output.std(0, correction=0) == pytest.approx(torch.ones_like(output[0]), abs=1e-3)
    changed = {name.rpartition(".")[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {*(f"encoder.conv{k}" for k in range(1, 6)), "fc6", "fc7"}


# ---- a run ----

SHORT = Config("labels", None, "l2", iterations=8, batch=12, rate=3e-5, seed=0, calibrate=True, data="3-classes")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of SHORT, trained on three colours under noise, eight images each, and four of each held out."""
    root, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    for name, colour in CLASSES.items():
        for k in range(12):
            path = root / "colours" / ("train" if k < 8 else "val") / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.array(colour) + rng.normal(0, 40, (64, 64, 3)) + rng.normal(0, 20)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.train.LOG_EVERY", 1)
        return pretrain(SHORT, folders=Folders(images=(root / "colours",)), runs=root / "runs", device=CPU)


def test_the_loss_falls(trained: Path, losses_of: Callable[[Path], list[float]]) -> None:
    losses = losses_of(trained)
    assert len(losses) == SHORT.iterations
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:2])
    assert np.mean(losses[-3:]) < 0.7 * math.log(3)  # what a guess costs


def test_held_out_images_are_named_better_than_by_chance(trained: Path) -> None:
    found = read_encoder(trained).provenance
    assert found["held_out"]["top1"] >= 0.75
    assert found["held_out"] == pytest.approx(
        {"top1": found["held_out"]["top1"], "top5": 1.0, "chance_top1": 1 / 3, "chance_top5": 1.0}, abs=1e-6
    )
    assert (found["variant"], found["supervision"]) == ("3-classes", "3 class labels")
    dataset = found["dataset"]
    assert (dataset["name"], dataset["images"], dataset["classes"]) == ("colours", 36, 3)
