"""Training sets parted, to choose constants without the test sets."""

from pathlib import Path

import pytest

from benchmarks.holdout import hold_out
from pretrain.files import Missing, Usage
from transfer import classification, segmentation, voc


def ids(tree: Path, year: str, kind: str, split: str) -> list[str]:
    return voc.image_set(tree / "VOCdevkit" / year, kind, split)


def test_parts_are_disjoint_and_hold_no_test_image(tiny: Path, tmp_path: Path) -> None:
    hold_out(tiny, tmp_path / "held", every=3)
    for year, kind, split, test in (
        ("VOC2007", "Main", "trainval", "test"),
        ("VOC2012", "Segmentation", "train", "val"),
    ):
        trained, held = (ids(tmp_path / "held", year, kind, name) for name in (split, test))
        whole = ids(tiny, year, kind, split)
        assert sorted(trained + held) == sorted(whole)
        assert len(held) == len(whole) // 3
        assert not set(trained + held) & set(ids(tiny, year, kind, test))


def test_every_task_reads_it(tiny: Path, tmp_path: Path) -> None:
    hold_out(tiny, tmp_path / "held")
    devkit = tmp_path / "held" / "VOCdevkit"
    assert classification.data(classification.RECIPES["tiny"], devkit).images == {"train": 18, "test": 6}
    assert segmentation.data(segmentation.RECIPES["tiny"], devkit).images == {"train": 9, "test": 3}


def test_what_cannot_be_parted_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="too few to hold one in 100 out"):
        hold_out(tiny, tmp_path / "held", every=100)
    assert not any(tmp_path.iterdir())  # nothing half done
    hold_out(tiny, tmp_path / "held")
    with pytest.raises(Usage, match="already there"):
        hold_out(tiny, tmp_path / "held")
