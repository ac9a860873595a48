"""Checkpoints and logs with anything in them: one line that names the file, and never a wrong number."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.checkpoints import checkpoint_due, checkpoint_seconds, ended, load_checkpoint, restore, save_checkpoint
from pretrain.files import Failed, Usage
from pretrain.journal import Journal

MOST = 10


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and an optimizer that have made a step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, betas=(0.5, 0.9))
    network(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    return network, optimizer


def state() -> dict[str, Any]:
    network, optimizer = trained()
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 3}


def restored(path: Path, saved: dict[str, Any]) -> int:
    network, optimizer = trained()
    return restore(path, saved, network=("network", network), optimizer=optimizer, count="iteration", most=MOST)


def test_a_checkpoint_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    saved = load_checkpoint(path)
    assert saved is not None
    assert restored(path, saved) == 3
    assert not ended(saved, "iteration", most=MOST)
    assert ended(saved, "iteration", most=3)
    assert not ended(saved | {"iteration": torch.tensor([3, 3])}, "iteration", most=3)
    assert not ended(None, "iteration", most=3)
    assert load_checkpoint(tmp_path / "absent") is None


def changed(*place: Any, to: Any) -> dict[str, Any]:
    """A checkpoint with another value at one place; `to` may be a function of what is there."""
    whole: Any = state()
    *way, last = place
    inside = whole
    for key in way:
        inside = inside[key]
    inside[last] = to(inside[last]) if callable(to) else to
    return whole


WEIGHT, SLOT, GROUP = ("network", "0.weight"), ("optimizer", "state", 0, "exp_avg"), ("optimizer", "param_groups", 0)
WRONG = {
    "an iteration beyond": (("iteration",), MOST + 1),
    "an iteration before": (("iteration",), -1),
    "an iteration in words": (("iteration",), "3"),
    "a true iteration": (("iteration",), True),
    "half an iteration": (("iteration",), 3.0),
    "NaN for an iteration": (("iteration",), math.nan),
    "a tensor for an iteration": (("iteration",), torch.tensor(3)),
    "weights of another shape": (WEIGHT, torch.zeros(3, 3)),
    "weights of another type": (WEIGHT, lambda w: w.double()),
    "weights in words": (WEIGHT, "0.weight"),
    "NaN for a weight": (WEIGHT, lambda w: w * math.nan),
    "an infinite weight": (WEIGHT, lambda w: w / 0),
    "terabytes": (WEIGHT, torch.zeros(1).expand(10**6, 10**6)),
    "sparse weights": (WEIGHT, lambda w: w.to_sparse()),
    "no network": (("network",), None),
    "a list for a network": (("network",), []),
    "another network": (("network", "1.scale"), torch.zeros(3)),
    "no optimizer": (("optimizer",), None),
    "no groups": (("optimizer", "param_groups"), None),
    "more groups": (("optimizer", "param_groups"), lambda groups: groups * 2),
    "a group of words": (("optimizer", "param_groups"), ["params"]),
    "other parameters": ((*GROUP, "params"), [3, 2, 1, 0]),
    "a rate in words": ((*GROUP, "lr"), "0.1"),
    "an infinite rate": ((*GROUP, "lr"), math.inf),
    "one beta": ((*GROUP, "betas"), (0.5,)),
    "an option of another solver": ((*GROUP, "nesterov_of"), 1),
    "no slots": (("optimizer", "state"), None),
    "slots of another parameter": (("optimizer", "state", 99), {}),
    "a slot of another shape": (SLOT, torch.zeros(1, 6)),
    "a slot in words": (SLOT, "momentum"),
    "a nested slot": (SLOT, [[[]]]),
    "NaN in a slot": (SLOT, lambda m: m * math.nan),
    "NaN for a step": (("optimizer", "state", 0, "step"), torch.tensor(math.nan)),
}


@pytest.mark.parametrize(("place", "to"), WRONG.values(), ids=WRONG)
def test_fields_are_not_trusted(place: tuple[Any, ...], to: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Failed) as caught:
        restored(path, changed(*place, to=to))
    assert str(caught.value).startswith(f"{path}: not a checkpoint of this network")
    assert str(caught.value).endswith(": delete it to start this run over")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["network", "optimizer", "iteration"])
def test_missing_fields_are_named(key: str, tmp_path: Path) -> None:
    saved = state()
    del saved[key]
    with pytest.raises(Failed, match="not a checkpoint of this network"):
        restored(tmp_path, saved)


@pytest.mark.parametrize("kind", ["a list", "a number", "keys of another kind", "compressed", "a folder"])
def test_files_of_another_kind_are_damaged(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    if kind == "a folder":
        path.mkdir()
    else:
        given = {"a list": [1], "a number": 1, "keys of another kind": {1: 1}}.get(kind, {"w": torch.zeros(10**6)})
        torch.save(given, path)
    if kind == "compressed":  # 4 MB in 4 KB, as a bomb has gigabytes
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        (tmp_path / "new").replace(path)
    with pytest.raises(Failed) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"{path}: damaged checkpoint: delete it to start this run over"


@pytest.mark.parametrize("said", ["soon", "nan", "inf", "-1", "1e999", "1 s"])
def test_odd_times_between_checkpoints_are_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", said)
    with pytest.raises(Usage, match=r"^\$BENCH_CHECKPOINT_SECONDS='.*': not a number of seconds: give one"):
        checkpoint_due()


def test_usual_times_between_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, seconds in (("0", 0.0), ("1e3", 1000.0), (" 5 ", 5.0), ("", 60.0)):
        monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", said)
        assert checkpoint_seconds() == seconds
    monkeypatch.delenv("BENCH_CHECKPOINT_SECONDS")
    assert checkpoint_seconds() == 60.0


def test_a_log_with_damaged_lines_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are left out, which is said; what comes after the checkpoint is dropped, for it is written again."""
    good = [json.dumps({"iteration": n, "loss": 1.0}) for n in (1, 2, 3, 4)]
    bad = ['{"iteration": 3, "lo', "}", '"}', "[1]", "{}", '{"iteration": "2"}', '{"iteration": true}', "[" * 10**5]
    bad += ['{"iteration": NaN}', "\udcff\udcfe", '{"iteration": -1}', "\0"]
    path = tmp_path / "log.jsonl"
    lines = [good[0], *bad[:5], good[1], *bad[5:], good[3], '{"iteration": 4, "loss": 0.']
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    journal = Journal(tmp_path, start=3)
    journal.board.close()
    assert path.read_text().splitlines() == good[:2]
    assert capsys.readouterr().err == f"{path}: {len(bad) + 1} damaged lines left out\n"
    Journal(tmp_path, start=3).board.close()
    assert capsys.readouterr().err == ""
