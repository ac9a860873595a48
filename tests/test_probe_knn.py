"""Nearest neighbours against plain NumPy; the bad cases."""

import dataclasses

import numpy as np
import pytest
import torch

from pretrain.files import Failed
from transfer.probes import knn
from transfer.probes.descriptors import Descriptor
from transfer.resampling import resamplings

CPU = torch.device("cpu")


@pytest.fixture
def work(tmp_path):
    return tmp_path / "runs" / "transfer" / "tiny" / "random" / "knn"


def by_hand(train, test, labels, k, *, leave_out=False):
    """Score by score, from the definition."""
    found = np.zeros((len(test), labels.shape[1]))
    for i, row in enumerate(test):
        cosine = np.array([row @ other / (np.linalg.norm(row) * np.linalg.norm(other)) for other in train])
        if leave_out:
            cosine[i] = -np.inf
        near = sorted(range(len(train)), key=lambda j: -cosine[j])[: min(k, len(train) - leave_out)]
        for column in range(labels.shape[1]):
            have = sum(max(cosine[j], 0) for j in near if labels[j, column] > 0)
            all_ = sum(max(cosine[j], 0) for j in near if labels[j, column] != 0)
            found[i, column] = have / all_ if all_ else 0
    return found


@pytest.mark.parametrize("k", [1, 7, 200])
@pytest.mark.parametrize("leave_out", [False, True])
def test_scores_are_those_of_brute_force(k, leave_out):
    """k may exceed the number of images: then all are neighbours."""
    random = np.random.default_rng(k)
    train = random.normal(size=(30, 12)).astype(np.float32)
    test = train if leave_out else random.normal(size=(9, 12)).astype(np.float32)
    labels = random.choice([-1, 0, 1], size=(30, 20))
    places, similarity = knn.nearest(train, None if leave_out else test, k)
    found = knn.votes(places, similarity, labels)
    expected = by_hand(train.astype(float), test.astype(float), labels, k, leave_out=leave_out)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_duplicate_is_a_neighbour_but_an_image_is_not_its_own():
    train = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    labels = np.array([[1, -1], [-1, 1], [-1, -1]])
    places, _ = knn.nearest(train, None, 1)
    assert places[:2].ravel().tolist() == [1, 0]
    assert knn.votes(*knn.nearest(train, train[:1], 2), labels).tolist() == [[0.5, 0.5]]


def test_zero_features_score_zero():
    train, test, labels = np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32), np.full((4, 20), 1)
    assert not knn.votes(*knn.nearest(train, test, 2), labels).any()


def test_knn_from_an_encoder_to_its_scores(encoder, tiny, work):
    recipe, devkit = knn.RECIPES["tiny"], tiny / "VOCdevkit"
    found = knn.evaluate(encoder, recipe, devkit, seed=0, work=work, device=CPU)
    assert all(0 <= value <= 1 for value in found.metrics.values())
    assert {f"cv_k{k}" for k in recipe.neighbours} <= set(found.metrics)
    images = len(found.per_image["labels"])
    headline = knn.resampled(found.per_image, np.vstack([np.ones(images, np.int64), resamplings(images)]))
    assert headline[0] == pytest.approx(found.metrics["map_sklearn"], abs=1e-12)
    assert knn.evaluate(encoder, recipe, devkit, seed=3, work=work, device=CPU) == found


def test_k_is_chosen_on_the_training_images(tiny, work):
    """With k = 1 alone the score is another, unless it was the chosen one."""
    devkit = tiny / "VOCdevkit"
    both = knn.evaluate(Descriptor("hog"), knn.RECIPES["tiny"], devkit, seed=0, work=work, device=CPU).metrics
    chosen = max(knn.RECIPES["tiny"].neighbours, key=lambda k: (both[f"cv_k{k}"], -k))
    only = dataclasses.replace(knn.RECIPES["tiny"], neighbours=(chosen,))
    alone = knn.evaluate(Descriptor("hog"), only, devkit, seed=0, work=work, device=CPU).metrics
    assert alone["map_sklearn"] == both["map_sklearn"]


def test_one_training_image_is_one_line(tiny, work):
    one = dataclasses.replace(knn.RECIPES["tiny"], train_images=1)
    with pytest.raises(Failed, match="one training image has no neighbour"):
        knn.evaluate(Descriptor("hog"), one, tiny / "VOCdevkit", seed=0, work=work, device=CPU)
