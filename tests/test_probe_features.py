"""Frozen features: what is averaged of which layer, and a cache that is never wrong."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.options import parser
from pretrain.alexnet import CAFFENET, AlexNet, Architecture, local_response_norm, mean_rgb
from pretrain.files import Failed
from transfer import TASKS, classification, tasks, voc
from transfer.probes import descriptors, features, images
from transfer.probes.descriptors import DESCRIPTORS, Descriptor
from transfer.probes.features import LAYERS, activations, averaged, read
from transfer.probes.images import Recipe, square

CPU = torch.device("cpu")
SMALL = Recipe(name="small", train_images=5, test_images=4)


@pytest.fixture
def work(tmp_path):
    return tmp_path / "runs" / "transfer" / "tiny" / "random" / "svm"


def probe(source, tiny, work, recipe=SMALL):
    return read(source, recipe, tiny / "VOCdevkit", work=work, device=CPU)


def by_hand(encoder, x):
    """The layers, written out from the ten tensors: CaffeNet's order, LRN behind the pooling."""
    t = encoder.tensors
    conv1 = F.conv2d(x, t["conv1.weight"], t["conv1.bias"], stride=4).clamp(min=0)
    norm1 = local_response_norm(F.max_pool2d(conv1, 3, 2, ceil_mode=True))
    conv2 = F.conv2d(norm1, t["conv2.weight"], t["conv2.bias"], padding=2, groups=2).clamp(min=0)
    norm2 = local_response_norm(F.max_pool2d(conv2, 3, 2, ceil_mode=True))
    conv3 = F.conv2d(norm2, t["conv3.weight"], t["conv3.bias"], padding=1).clamp(min=0)
    conv4 = F.conv2d(conv3, t["conv4.weight"], t["conv4.bias"], padding=1, groups=2).clamp(min=0)
    conv5 = F.conv2d(conv4, t["conv5.weight"], t["conv5.bias"], padding=1, groups=2).clamp(min=0)
    return [conv1, conv2, conv3, conv4, conv5, F.max_pool2d(conv5, 3, 2, ceil_mode=True)]


def test_each_layer_is_what_is_written_out_by_hand(encoder, tiny, work):
    """From the pixels to rows of length one, in the images' order, to float16's precision."""
    found = probe(encoder, tiny, work)
    assert found.layers == LAYERS
    assert (found.receipt.loaded, found.receipt.expected) == (10, 10)
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((227, 227), 2)) for path in found.test.paths]
    expected = by_hand(encoder, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() - mean_rgb())
    for name, maps, side in zip(LAYERS, expected, (10, 6, 5, 5, 6, 6), strict=True):
        rows = F.adaptive_avg_pool2d(maps, side).flatten(1)
        train, test = found.layer(name)
        assert train.shape == (5, rows.shape[1])
        np.testing.assert_allclose(test, F.normalize(rows).numpy(), atol=5e-4)
        np.testing.assert_allclose(np.linalg.norm(test, axis=1), 1, atol=1e-3)


def test_a_leaky_trunk_leaks_in_its_features_too():
    trunk = AlexNet(Architecture(slope=0.2, norm="none")).eval()
    x = torch.randn(1, 3, 227, 227)
    found = activations(trunk, x)
    assert torch.equal(found["conv1"], F.leaky_relu(trunk.conv1(x), 0.2))
    assert torch.equal(found["pool5"], trunk(x))
    assert not any(conv._forward_hooks for conv in trunk.convs())


@pytest.mark.parametrize(
    ("channels", "side"), [(96, 10), (256, 6), (384, 5), (64, 12), (192, 7), (9000, 1), (20000, 1)]
)
def test_a_layer_is_averaged_to_about_nine_thousand_numbers(channels, side):
    assert averaged(torch.ones(1, channels, 13, 13), 9000).shape == (1, channels * side * side)


def test_a_second_probe_computes_nothing(encoder, tiny, work, monkeypatch):
    first = probe(encoder, tiny, work)
    monkeypatch.setattr(features, "squares", lambda *_: pytest.fail("the features were computed again"))
    second = probe(encoder, tiny, work)
    assert (second.folder, second.files) == (first.folder, first.files)
    assert first.folder.parent == work.parents[3] / "features"


def test_what_changes_the_numbers_changes_the_place(encoder, tiny, work):
    first = probe(Descriptor("pixels"), tiny, work)
    others = [
        probe(Descriptor("colour-histogram"), tiny, work),
        probe(Descriptor("pixels"), tiny, work, dataclasses.replace(SMALL, side=100)),
        probe(Descriptor("pixels"), tiny, work, dataclasses.replace(SMALL, test_images=3)),
        probe(Descriptor("pixels"), tiny, work, dataclasses.replace(SMALL, numbers=100)),
    ]
    assert len({found.folder for found in (first, *others)}) == 5


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "index", "no index"])
def test_a_damaged_file_is_computed_again(damage, tiny, work, capsys):
    first = probe(Descriptor("pixels"), tiny, work)
    train, test = first.layer("pixels")
    path = first.folder / "pixels.npy"
    whole = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "gone":
        path.unlink()
    elif damage == "index":
        (first.folder / "index.json").write_text("[]")
    else:
        (first.folder / "index.json").unlink()
    second = probe(Descriptor("pixels"), tiny, work)
    assert path.read_bytes() == whole
    assert all(np.array_equal(a, b) for a, b in zip((train, test), second.layer("pixels"), strict=True))
    assert ("damaged" in capsys.readouterr().err) == (damage != "no index")


def test_features_that_are_not_finite_are_one_line(encoder, tiny, work):
    tensors = encoder.tensors | {"conv3.weight": torch.full_like(encoder.tensors["conv3.weight"], 3e38)}
    with pytest.raises(Failed, match=r"encoder\.safetensors: its conv3 has NaN or infinite values") as error:
        probe(dataclasses.replace(encoder, tensors=tensors), tiny, work)
    assert "\n" not in str(error.value)
    assert not list((work.parents[3] / "features").rglob("*.npy"))


def test_features_of_any_scale_are_kept(encoder, tiny, work):
    """float16 ends at 65,504 and 6e-8; rows of length one do not."""
    tensors = encoder.tensors | {"conv1.bias": torch.zeros(96), "conv1.weight": encoder.tensors["conv1.weight"] * 1e6}
    large = probe(dataclasses.replace(encoder, tensors=tensors, sha256="large"), tiny, work).layer("conv1")[1]
    zero = encoder.tensors | {"conv1.bias": torch.zeros(96)}
    plain = probe(dataclasses.replace(encoder, tensors=zero, sha256="plain"), tiny, work).layer("conv1")[1]
    np.testing.assert_allclose(large, plain, atol=2e-5)


def test_descriptors_are_what_they_say(tiny):
    pixels = voc.read_image(next((tiny / "VOCdevkit/VOC2007/JPEGImages").iterdir()))
    small = square(pixels, 227)
    assert small.shape == (227, 227, 3)
    red = np.zeros((227, 227, 3), np.uint8)
    red[..., 0] = 255
    histogram = descriptors.colour_histogram(red)
    assert histogram.shape == (512,)
    assert histogram[7 * 64] == 1
    assert descriptors.hog(small).shape == (8100,)
    assert not descriptors.hog(red).any()  # no edge
    assert np.array_equal(descriptors.pixels(red).reshape(32, 32, 3)[0, 0], [255 - 123, -117, -104])
    assert len({Descriptor(name).sha256 for name in DESCRIPTORS}) == 3
    for name in DESCRIPTORS:
        assert parser().parse_args(["transfer", "--task", "svm", "--features", name]).features == name


def test_images_are_those_of_classification(tiny):
    for name in ("paper", "quick", "tiny"):
        theirs = classification.RECIPES[name]
        for task in tasks("probes"):
            ours = TASKS[task].load().RECIPES[name]
            fields = ("year", "train_split", "test_split", "train_images", "test_images")
            assert all(getattr(ours, field) == getattr(theirs, field) for field in fields)
    devkit = tiny / "VOCdevkit"
    assert images.data(Recipe(name="tiny"), devkit) == classification.data(classification.RECIPES["tiny"], devkit)


def test_the_front_needs_no_framework_of_the_other_tasks():
    """`bench probes` and the probes themselves import neither detectron2 nor mmseg."""
    code = (
        "import sys, benchmarks.probes, transfer.probes.svm, transfer.probes.low_shot, transfer.probes.knn;"
        "print([m for m in ('detectron2', 'mmseg', 'mmcv', 'mmengine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_caffenet_is_averaged_as_in_the_paper():
    sides = [10, 6, 5, 5, 6]
    assert [c * s * s for c, s in zip(CAFFENET.widths, sides, strict=True)] == [9600, 9216, 9600, 9600, 9216]
