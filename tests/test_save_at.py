"""Encoders on the way: what `bench pretrain --save-at` leaves, also when it was interrupted, and what it refuses."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import cli
from pretrain import Folders
from pretrain.alexnet import Encoder, read_encoder
from pretrain.context import ContextEncoder
from pretrain.files import Usage
from pretrain.pretext import Loss
from pretrain.randomness import Draw
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
SHORT = Config(method="context", mask="central", loss="l2", iterations=4, batch=2, rate=1e-4, seed=0, label="x")
AT = (0, 2, 4)


def train(config: Config, tiny: Path, runs: Path, *at: int) -> Path:
    """A run's encoder, trained with a checkpoint after each iteration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
        return pretrain(config, folders=Folders(images=(tiny / "images",)), runs=runs, device=CPU, save_at=at)


def saved(folder: Path, iteration: int) -> Encoder:
    return read_encoder(folder / f"encoder-00000{iteration}.safetensors")


def same(a: Encoder, b: Encoder) -> bool:
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopped(config: Config, tiny: Path, runs: Path, *save_at: int, at: int) -> Path:
    """Stop a run in the forward pass of iteration `at`; return its folder."""
    forward = ContextEncoder.forward

    def stopping(self: ContextEncoder, batch: torch.Tensor, draw: Draw) -> Loss:
        if draw.iteration == at:
            raise Stop
        return forward(self, batch, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextEncoder, "forward", stopping)
        with pytest.raises(Stop):
            train(config, tiny, runs, *save_at)
    (folder,) = (path for path in (runs / "pretrain").iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that saved encoders on its way."""
    return train(SHORT, tiny, tmp_path_factory.mktemp("whole"), *AT).parent


def test_an_encoder_on_the_way_is_a_row_of_its_own(whole: Path) -> None:
    assert sorted(path.name for path in whole.glob("*.safetensors")) == [
        "encoder-000000.safetensors", "encoder-000002.safetensors", "encoder-000004.safetensors", "encoder.safetensors"
    ]  # fmt: skip
    final = read_encoder(whole / "encoder.safetensors").provenance
    assert not {"of_iterations", "layers"} & set(final)
    for iteration in AT:
        said = saved(whole, iteration).provenance
        assert (said["iterations"], said["of_iterations"], said["images_seen"]) == (iteration, 4, 2 * iteration)
        assert (said["label"], said["variant"]) == (f"x-at-{iteration}", f"central-x-at-{iteration}")
        assert said["held_out"] == {}
        same_keys = set(asdict(SHORT)) - {"iterations", "label"} | {"supervision", "dataset", "shapes"}
        assert {key: said[key] for key in same_keys} == {key: final[key] for key in same_keys}
    seconds = [saved(whole, iteration).provenance["seconds"] for iteration in AT]
    assert seconds[0] == 0 < seconds[1] <= seconds[2]


def test_it_says_what_happened_in_its_layers(whole: Path) -> None:
    for iteration in AT:
        layers = saved(whole, iteration).provenance["layers"]
        assert list(layers) == [f"conv{k}" for k in range(1, 6)]
        for found in layers.values():
            assert set(found) == {"mean", "deviation", "between_images", "dead", "constant", "gradient"}
            assert all(0 <= found[share] <= 1 for share in ("between_images", "dead", "constant"))
            assert (found["gradient"] is None) == (iteration == 0)
            assert iteration == 0 or found["gradient"] > 0


def test_it_equals_the_end_of_a_run_that_ends_there(whole: Path, tiny: Path, tmp_path: Path) -> None:
    """Nothing of the context encoder's training depends on how long it will be; and saving changes nothing."""
    assert same(saved(whole, 4), read_encoder(whole / "encoder.safetensors"))
    for iterations in (0, 2):
        shorter = train(replace(SHORT, iterations=iterations), tiny, tmp_path)
        assert same(saved(whole, iterations), read_encoder(shorter))
    assert not same(saved(whole, 0), saved(whole, 2))


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_was_killed_leaves_the_same(lost: bool, whole: Path, tiny: Path, tmp_path: Path) -> None:
    """Behind an encoder on the way, which stays as it is, also where the run passes it again (no checkpoint)."""
    folder = stopped(SHORT, tiny, tmp_path, *AT, at=3)
    there = {path: path.stat().st_mtime_ns for path in folder.glob("encoder-*")}
    assert len(there) == 2
    if lost:
        (folder / "checkpoint.pt").unlink()
    train(SHORT, tiny, tmp_path, *AT)
    for iteration in AT:
        ours, theirs = saved(folder, iteration), saved(whole, iteration)
        assert same(ours, theirs)
        assert ours.provenance["layers"] == theirs.provenance["layers"]
    assert all(path.stat().st_mtime_ns == then for path, then in there.items())


def test_what_cannot_be_saved_is_refused(whole: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage, match=r"^--save-at 5: training ends after 4 iterations$"):
        train(SHORT, tiny, tmp_path, 0, 5)
    with pytest.raises(Usage, match=r"^--save-at 0: nothing is trained here: leave this out"):
        train(replace(SHORT, iterations=0), tiny, tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
    again = train(SHORT, tiny, whole.parents[1], 2)  # finished, and it is there
    assert again.parent == whole
    with pytest.raises(Usage) as caught:
        train(SHORT, tiny, whole.parents[1], 2, 3)
    assert str(caught.value) == f"--save-at 3: {whole} has passed it: delete that to train again, or leave this out"
    folder = stopped(SHORT, tiny, tmp_path, at=3)
    with pytest.raises(Usage, match=f"^--save-at 2: {folder} has passed it: delete that to train again"):
        train(SHORT, tiny, tmp_path, 2, 3)
    train(SHORT, tiny, tmp_path, 3)  # which is still to come
    assert [path.name for path in folder.glob("encoder-*")] == ["encoder-000003.safetensors"]


def test_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["pretrain", "--mask", "central", "--images", str(tiny / "images"), "--batch", "2", "--runs", str(tmp_path)]
    run += ["--shapes", str(tiny / "VOCdevkit" / "VOC2012")]
    assert cli.main([*run, "--iterations", "1", "--save-at", "0", "1"]) == 0
    folder = Path(capsys.readouterr().out.strip()).parent
    assert [path.name for path in sorted(folder.glob("encoder-*"))] == [f"encoder-00000{k}.safetensors" for k in (0, 1)]
    assert cli.main([*run, "--iterations", "1", "--save-at", "2"]) == 2
    assert capsys.readouterr().err == "bench: --save-at 2: training ends after 1 iterations\n"
