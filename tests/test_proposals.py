"""Selective search: right boxes, the same ones every time, a cache that is used and never trusted blindly."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pretrain.files import Failed
from transfer import proposals as module
from transfer import voc
from transfer.proposals import SelectiveSearch, proposals, selective_search

SEARCH = SelectiveSearch(mode="fast", side=None, least=1, most=2000)


def drawn(folder: Path, count: int) -> tuple[list[Path], voc.Floats]:
    """Images of one rectangle on a plain ground each, as PNG-exact JPEGs, and the rectangles (count×4)."""
    rng = np.random.default_rng(0)
    paths, boxes = [], []
    for i in range(count):
        image = np.full((96, 128, 3), (90, 130, 90), np.uint8)
        x, y, w, h = rng.integers((5, 5, 30, 25), (60, 40, 60, 50))
        cv2.rectangle(image, (int(x), int(y)), (int(x + w - 1), int(y + h - 1)), (220, 40, 30), -1)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(image).save(paths[-1], quality=95)
        boxes.append((x, y, x + w, y + h))
    return paths, np.array(boxes, dtype=np.float64)


def same(one: list[voc.Floats], other: list[voc.Floats]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@pytest.mark.parametrize(("mode", "side"), [("fast", None), ("quality", None), ("fast", 60)])
def test_a_drawn_rectangle_is_proposed(tmp_path: Path, mode: str, side: int | None) -> None:
    paths, truth = drawn(tmp_path, 4)
    search = SelectiveSearch(mode=mode, side=side, least=1, most=2000)  # type: ignore[arg-type]
    found = proposals(paths, search, cache=tmp_path / "cache")
    best = [voc.overlaps(truth[i : i + 1], boxes).max() for i, boxes in enumerate(found)]
    assert min(best) > 0.85


def test_boxes_are_distinct_inside_the_image_and_in_order() -> None:
    image = np.random.default_rng(1).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    image = cv2.resize(image, (128, 96), interpolation=cv2.INTER_CUBIC)
    boxes = selective_search(image, SEARCH)
    assert len(boxes) > 20
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (128, 96)).all()
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert (np.diff(areas) <= 0).all()
    large = selective_search(image, SelectiveSearch(mode="fast", side=None, least=20, most=2000))
    assert (large[:, 2:] - large[:, :2]).min() >= 20
    assert len(large) < len(boxes)
    few = selective_search(image, SelectiveSearch(mode="fast", side=None, least=1, most=7))
    assert len(few) == 7
    assert {tuple(b) for b in few} < {tuple(b) for b in boxes}
    shrunk = selective_search(image, SelectiveSearch(mode="fast", side=48, least=1, most=2000))
    assert (shrunk[:, 2:].max(axis=0) == (128, 96)).all()  # scaled back


def test_a_blank_image_has_proposals_of_the_right_shape() -> None:
    boxes = selective_search(np.full((64, 80, 3), 128, np.uint8), SEARCH)
    assert boxes.shape[1] == 4


def test_workers_do_not_change_the_boxes(tmp_path: Path) -> None:
    paths, _ = drawn(tmp_path, 5)
    one = proposals(paths, SEARCH, cache=tmp_path / "one", workers=1)
    two = proposals(paths, SEARCH, cache=tmp_path / "two", workers=2)
    assert same(one, two)
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("one", "two")]
    assert names[0] == names[1]


def test_the_cache_is_read_and_depends_on_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _ = drawn(tmp_path, 3)
    cache = tmp_path / "cache"
    first = proposals(paths, SEARCH, cache=cache)
    calls = []

    def counted(image: voc.Bytes, search: SelectiveSearch) -> module.Boxes:
        calls.append(search)
        return selective_search(image, search)

    monkeypatch.setattr(module, "selective_search", counted)
    assert same(first, proposals(paths, SEARCH, cache=cache))
    assert calls == []
    proposals(paths, SelectiveSearch(mode="fast", side=None, least=9, most=2000), cache=cache)
    assert len(calls) == 3
    Image.new("RGB", (50, 40)).save(paths[1])
    proposals(paths, SEARCH, cache=cache)
    assert len(calls) == 6
    monkeypatch.setattr(cv2, "__version__", "0.0")
    proposals(paths, SEARCH, cache=cache)
    assert len(calls) == 9


@pytest.mark.parametrize("damage", ["truncated", "empty", "other content"])
def test_a_damaged_cache_is_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    paths, _ = drawn(tmp_path, 2)
    cache = tmp_path / "cache"
    first = proposals(paths, SEARCH, cache=cache)
    (file,) = cache.iterdir()
    if damage == "other content":
        with np.load(file) as old:
            np.savez(file, counts=old["counts"], boxes=old["boxes"] + 1, digest=old["digest"])
    else:
        file.write_bytes(file.read_bytes()[: 200 if damage == "truncated" else 0])
    capsys.readouterr()
    assert same(first, proposals(paths, SEARCH, cache=cache))
    warned = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(warned) == 1
    assert file.name in warned[0]
    assert same(first, proposals(paths, SEARCH, cache=cache))
    assert "damaged" not in capsys.readouterr().err


def test_an_interruption_loses_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    paths, _ = drawn(tmp_path, 5)
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[:100])
    with pytest.raises(Failed, match=r"3\.jpg: corrupt"):
        proposals(paths, SEARCH, cache=tmp_path / "cache", workers=1)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    paths[3].write_bytes(whole)
    assert len(proposals(paths, SEARCH, cache=tmp_path / "cache")) == 5
    assert len(list((tmp_path / "cache").iterdir())) == 3
