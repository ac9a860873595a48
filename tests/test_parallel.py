"""Two processes that torchrun starts train the network that one would: the same curve, the same files, one voice."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import cli, commands
from benchmarks.embedded.tiny import Counts, make_tiny
from pretrain import Folders, Solver, method_module, parallel
from pretrain import train as loop
from pretrain.alexnet import read_encoder
from pretrain.context import ContextEncoder
from pretrain.files import Failed, Usage
from pretrain.parallel import gathered, group, place, total
from pretrain.pretext import Loss
from pretrain.randomness import ALONE, Draw, Shard
from pretrain.relative import BatchNorm
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
HERE, BIN = Path(__file__).resolve(), Path(sys.executable).parent
LIMIT = 200  # seconds: whoever takes longer hangs
SGD = Solver("sgd", momentum=0.9)
# A mean of the processes' own losses would be another one: holes differ in size (context); statistics (relative),
# negatives (tracking) and what is dropped (labels) are those of the whole batch.
CONFIGS = {
    "context": Config("context", "random-block", "l2", iterations=4, batch=4, rate=3e-8, seed=0, solver=SGD),
    "relative": Config("relative", None, "l2", iterations=2, batch=2, rate=0.01, seed=0, solver=SGD),
    "tracking": Config("tracking", None, "l2", iterations=3, batch=6, rate=0.01, seed=0, solver=SGD, calibrate=True),
    "labels": Config("labels", None, "l2", iterations=3, batch=4, rate=3e-7, seed=0, solver=SGD, calibrate=True),
}
WIDTH = 64
BUILT: list[nn.Module] = []  # the networks of this process's runs
AT = 3  # the iteration in which a run is stopped
# Two halves add up in another order than a whole, no more. In float32 that is 1e-7 of a layer, and 2e-6 of the first
# loss of labels, behind eight of them. Steps multiply it: the rates are such that it stays below 5e-6, but that a wrong
# gradient does not; and the images are noisy, as in flat ones rounding decides which pixel is the maximum of a pool.
FIRST, LATER = 1e-5, 2e-5


class Stop(Exception):
    """Stands for whatever ends all processes at once."""


def only(folder: Path) -> Path:
    """The one folder in it."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def narrowed(pretext: nn.Module) -> nn.Module:
    """The same with WIDTH units in a fully connected layer: all but the time it takes stays."""
    for layer in pretext.modules():
        if isinstance(layer, nn.Linear):
            inputs = WIDTH if layer.in_features in (1024, 4096) else layer.in_features
            scale = (layer.in_features / inputs) ** 0.5
            layer.weight = nn.Parameter(layer.weight[:WIDTH, :inputs].detach() * scale)
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias[:WIDTH].detach().clone())
        elif isinstance(layer, BatchNorm) and len(layer.mean) == 4096:
            layer.mean, layer.variance = layer.mean[:WIDTH].clone(), layer.variance[:WIDTH].clone()
    BUILT.append(pretext)
    return pretext


def train(config: Config, images: Path, runs: Path, *, shard: Shard = ALONE, stop: bool = False) -> Path:
    """A narrow run, each loss in its journal; of context, a checkpoint each, too. `stop`: at AT. Returns its folder."""
    folders, forward = Folders(images=(images,)), ContextEncoder.forward
    module = method_module(config.method)
    build = module.build

    def stopping(self: ContextEncoder, batch: Tensor, draw: Draw) -> Loss:
        if draw.iteration == AT:
            raise Stop
        return forward(self, batch, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        patch.setattr(loop, "PICTURES", 1)
        patch.setattr(module, "build", lambda *a, **k: narrowed(build(*a, **k)))
        patch.setenv("BENCH_CHECKPOINT_SECONDS", "0" if config.method == "context" else "60")
        if not stop:
            return pretrain(config, folders=folders, runs=runs, device=CPU, shard=shard).parent
        patch.setattr(ContextEncoder, "forward", stopping)
        with pytest.raises(Stop):
            pretrain(config, folders=folders, runs=runs, device=CPU, shard=shard)
    return only(runs / "pretrain")


def losses(folder: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == list(range(1, len(records) + 1))  # each once
    return {record["iteration"]: record["loss"] for record in records}


def same_curve(found: dict[int, float], expected: dict[int, float]) -> bool:
    return found[1] == pytest.approx(expected[1], rel=FIRST) and found == pytest.approx(expected, rel=LATER)


def operations(shard: Shard) -> list[Tensor]:
    """Rows of all and sums of all; then, for each, the gradient of a loss that differs between two processes.

    Alone: of both losses.
    """
    whole = torch.arange(12.0).view(4, 3).sin()
    weights = torch.arange(24.0).view(2, 4, 3).cos()
    losses = weights if shard == ALONE else weights[shard.rank, None]
    first, second = (shard.own(whole).clone().requires_grad_() for _ in range(2))
    rows, sums = gathered(first.square(), shard), total(second.exp().sum(0), shard)
    (losses * rows.exp()).sum().backward()  # type: ignore[no-untyped-call]
    (losses[:, 0] * sums.sin()).sum().backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None
    assert second.grad is not None
    return [rows.detach(), sums.detach(), first.grad, second.grad]


# ---- what runs in two processes, for lack of a command that would ----


def all_trainings(images: Path, runs: Path) -> None:
    """Train all methods; leave and take over runs of context. Says what this process has in the end."""
    with group(CPU) as (shard, _):
        found: dict[str, Any] = {"operations": [value.tolist() for value in operations(shard)]}
        for name, config in CONFIGS.items():
            train(config, images, runs / "two", shard=shard)
            values = [value.numpy().tobytes() for value in BUILT[-1].state_dict().values()]
            found[name] = hashlib.sha256(b"".join(values)).hexdigest()
        for name in ("two-one", "two-two"):
            train(CONFIGS["context"], images, runs / name, shard=shard, stop=True)
        for name in ("one-two", "two-two"):
            train(CONFIGS["context"], images, runs / name, shard=shard)
    print(json.dumps(found))


def a_batch_of_three(tiny: Path) -> int:
    """`bench pretrain --batch 3`, with few embedded images, which process 0 is slow to make."""

    def make() -> None:
        time.sleep(0 if os.environ["RANK"] == "1" else 1)
        print("tiny data is there" if tiny.exists() else "tiny data is not there", file=sys.stderr)
        make_tiny(tiny, counts=Counts(2, 1, 1, 1, 2, 1, 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "TINY", tiny)
        patch.setattr(commands, "_make_tiny", make)
        return cli.main(["pretrain", "--batch", "3", "--iterations", "1"])


# ---- two processes ----


@dataclass(frozen=True)
class Ended:
    """What torchrun said and returned; what each process said."""

    code: int
    said: str
    out: list[str]
    err: list[str]

    @property
    def codes(self) -> set[int]:
        """Exit codes of the processes that failed by themselves."""
        return {int(code) for code in re.findall(r"exitcode +: (\d+)", self.said)}

    def lines(self) -> list[str]:
        """What both said on stderr, without progress."""
        return [line for text in self.err for line in text.splitlines() if not re.search(r": \d+/\d+( |$)", line)]


def torchrun(folder: Path, *command: object) -> Ended:
    """The command in two processes, in the folders 0 and 1 of `folder`."""
    for rank in "01":
        (folder / rank).mkdir(parents=True, exist_ok=True)
    shell = 'cd "$0/$RANK" && exec "$@" >out 2>err'
    given = (folder, *command)
    running = subprocess.Popen(
        [BIN / "torchrun", "--standalone", "--nproc-per-node=2", "--no-python", "sh", "-c", shell, *map(str, given)],
        env=os.environ | {"BENCH_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = running.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        running.terminate()  # it ends the two
        running.communicate()
        raise
    out, err = ([(folder / rank / name).read_text() for rank in "01"] for name in ("out", "err"))
    return Ended(running.returncode, said, out, err)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy images, of two classes."""
    folder = tmp_path_factory.mktemp("data") / "noise"
    rng = np.random.default_rng(0)
    for k in range(12):
        path = folder / ("light" if k % 2 else "dark") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(rng.integers(70, 120, 3) + 60 * (k % 2), 50, (140, 140, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one_does(images: Path, tmp_path: Path) -> None:
    """All in one test, as every start of two processes takes seconds."""
    one = tmp_path / "one"
    alone = {name: train(config, images, one) for name, config in CONFIGS.items()}
    context = CONFIGS["context"]
    train(context, images, tmp_path / "one-two", stop=True)

    ended = torchrun(tmp_path, sys.executable, HERE, "all_trainings", images, tmp_path)
    assert ended.code == 0, ended
    first, second = (json.loads(out) for out in ended.out)

    for name, folder in alone.items():
        expected = losses(folder)
        together = tmp_path / "two" / folder.relative_to(one)
        assert same_curve(losses(together), expected), (name, losses(together), expected)
        assert first[name] == second[name], name  # all parameters, to the bit
        said = [read_encoder(path / "encoder.safetensors").provenance for path in (folder, together)]
        assert [provenance["processes"] for provenance in said] == [1, 2]

    *values, rows, sums = operations(ALONE)
    for rank, found in enumerate((first, second)):
        parts = [Shard(rank, 2).own(gradient) for gradient in (rows, sums)]
        for value, expected_value in zip(found["operations"], [*values, *parts], strict=True):
            torch.testing.assert_close(torch.tensor(value), expected_value)

    uninterrupted = losses(alone["context"])
    folders = {name: only(tmp_path / name / "pretrain") for name in ("two-one", "one-two", "two-two")}
    assert torch.load(folders["two-one"] / "checkpoint.pt", weights_only=True)["iteration"] == AT - 1
    train(context, images, tmp_path / "two-one")
    for name in ("two-one", "one-two"):
        assert same_curve(losses(folders[name]), uninterrupted), (name, losses(folders[name]), uninterrupted)
        assert not (folders[name] / "checkpoint.pt").exists()
    undisturbed = tmp_path / "two" / alone["context"].relative_to(one)
    assert losses(folders["two-two"]) == losses(undisturbed)
    weights = [load_file(path / "encoder.safetensors") for path in (folders["two-two"], undisturbed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_one_process_writes_and_answers(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench pretrain`, each process in a folder of its own."""
    options = {"mask": "random-block", "images": images, "shapes": images, "iterations": 2, "batch": 4, "lr": 1e-6}
    command = ("pretrain", *(text for name, value in options.items() for text in (f"--{name}", str(value))))
    command += ("--save-at", "0", "1")
    ended = torchrun(tmp_path, BIN / "bench", *command)
    assert ended.code == 0, ended
    assert ended.err[1] == ""
    assert ended.out[1] == ""
    assert re.fullmatch(r"runs/pretrain/context-random-block-[0-9a-f]{8}/encoder\.safetensors\n", ended.out[0])
    written = [path for path in (tmp_path / "1" / "runs").rglob("*") if path.is_file()]
    assert {path.parent.name for path in written} == {"stores"}  # no disk is shared: each decodes for itself
    encoder = tmp_path / "0" / ended.out[0].strip()
    assert (tmp_path / "0/runs/pretrain/last").read_text() == ended.out[0].removeprefix("runs/")
    assert len(list((encoder.parent / "tensorboard").iterdir())) == 1
    on_the_way = [read_encoder(encoder.with_name(f"encoder-00000{n}.safetensors")).provenance for n in (0, 1)]
    assert [(said["iterations"], said["processes"]) for said in on_the_way] == [(0, 2), (1, 2)]

    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    assert cli.main(command) == 0
    assert same_curve(losses(encoder.parent), losses(only(tmp_path / "alone/runs/pretrain")))
    names = [
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if "tfevents" not in path.name)
        for folder in (encoder.parent, only(tmp_path / "alone/runs/pretrain"))
    ]
    assert names[0] == names[1]


def test_a_batch_that_cannot_be_shared_is_refused_once(tmp_path: Path) -> None:
    """And the embedded data is made once before that, as of two makers one would sweep the other's away."""
    ended = torchrun(tmp_path, sys.executable, HERE, "a_batch_of_three", tmp_path / "tiny")
    assert ended.code != 0
    assert ended.codes == {2}
    assert "tiny data is not there" in ended.err[0]
    assert "tiny data is there" in ended.err[1]
    said = [line for line in ended.lines() if not line.startswith("tiny data is")]
    assert said == ["bench: --batch 3: not divisible among 2 processes"]
    assert ended.out == ["", ""]


def test_a_loss_that_is_not_finite_ends_all_and_leaves_the_checkpoint(images: Path, tmp_path: Path) -> None:
    """Only the first process looks at the loss there, to save it; the second waits for it in the next iteration."""
    command = ("--mask", "central", "--images", images, "--shapes", images, "--runs", tmp_path / "runs")
    ended = torchrun(tmp_path, BIN / "bench", "pretrain", *command, "--iterations", 50, "--batch", 2, "--lr", 1000)
    folder = only(tmp_path / "runs" / "pretrain")
    assert ended.code != 0
    assert ended.codes == {1}
    (said,) = ended.lines()
    assert re.match(rf"bench: {folder}: the loss is (nan|inf) at iteration \d: lower --lr", said)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["iteration"] == len(losses(folder)) > 0
    assert not (folder / "encoder.safetensors").exists()
    assert ended.out == ["", ""]


def test_data_that_one_process_cannot_use_ends_all(images: Path, tmp_path: Path) -> None:
    """The first has its data, and waits for the second, whose data is corrupt."""
    for rank in (0, 1):
        (tmp_path / f"{rank}").mkdir()
    (tmp_path / "0" / "images").symlink_to(images)
    (tmp_path / "1" / "images").mkdir()
    (tmp_path / "1" / "images" / "a.png").write_bytes(b"not a picture")
    command = ("--mask", "central", "--images", "images", "--shapes", images, "--iterations", 50, "--batch", 2)
    ended = torchrun(tmp_path, BIN / "bench", "pretrain", *command)
    assert ended.code != 0
    assert 3 in ended.codes
    (said,) = ended.lines()
    assert said.startswith("bench: images: not one of 1 files can be used")
    assert said in ended.err[1]
    assert not [path for path in (tmp_path / "0" / "runs" / "pretrain").glob("*") if path.is_dir()]
    assert ended.out == ["", ""]


THERE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SENSELESS = {
    "RANK": ["", "x", "2", "-1", "1.0", "²", "9" * 5000],
    "WORLD_SIZE": ["", "x", "0", "-2", "9" * 30],
    "MASTER_PORT": ["", "x", "0", "65536"],
    "MASTER_ADDR": [""],
    "LOCAL_RANK": ["x", "-1", "2"],
}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set torchrun's variables."""

    def write(**changes: str) -> None:
        for name, value in (THERE | changes).items():
            monkeypatch.setenv(name, value)

    return write


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SENSELESS.items() for value in values])
def test_variables_without_sense_are_refused(name: str, value: str, variables: Callable[..., None]) -> None:
    variables(**{name: value})
    with pytest.raises(Usage, match=f"^torchrun: .*{name}") as caught:
        place()
    assert len(str(caught.value)) < 200


def test_without_torchrun_a_process_is_alone(variables: Callable[..., None]) -> None:
    """Whatever else of its variables a cluster sets."""
    variables(RANK="", WORLD_SIZE="")
    assert place() is None
    with group(CPU) as joined:
        assert joined == (ALONE, CPU)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_partners_that_do_not_come_are_not_waited_for(
    rank: str, variables: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parallel, "JOIN_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables(RANK=rank, MASTER_PORT=str(port))
    with pytest.raises(Failed, match=rf"^torchrun: .* \(RANK={rank} WORLD_SIZE=2 .*={port}\): start all"):
        group(CPU).__enter__()
    assert capfd.readouterr().err == ""


if __name__ == "__main__":
    named: dict[str, Callable[..., int | None]] = {"all_trainings": all_trainings, "a_batch_of_three": a_batch_of_three}
    sys.exit(named[sys.argv[1]](*map(Path, sys.argv[2:])))
