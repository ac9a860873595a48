"""Linear SVMs on frozen features, against scikit-learn on the features as they are; the bad cases."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from pretrain.files import Failed
from transfer import voc
from transfer.probes import linear, low_shot, scores, svm
from transfer.probes.descriptors import Descriptor
from transfer.probes.linear import Machine, all_scores, aps, best_costs, folds, rotated, validated
from transfer.ranking import average_precisions, chance_map, resampled_map
from transfer.resampling import resamplings

CPU = torch.device("cpu")
MACHINE = Machine()


@pytest.fixture
def work(tmp_path):
    return tmp_path / "runs" / "transfer" / "tiny" / "random" / "svm"


def unit(random, rows, columns):
    found = np.abs(random.normal(size=(rows, columns))).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def some_labels(random, images, classes=20):
    labels = random.choice([-1, -1, -1, 0, 1], size=(images, classes))
    labels[:2] = [[1], [-1]]
    return labels


@pytest.mark.parametrize(("images", "numbers"), [(30, 200), (60, 12), (20, 20)])
@pytest.mark.parametrize("cost", [0.1, 100.0])
def test_a_rotation_changes_no_score(images, numbers, cost):
    """The oracle is LinearSVC on the rows as they are, dual as in the released code and primal."""
    random = np.random.default_rng(images)
    train, test, labels = unit(random, images, numbers), unit(random, 9, numbers), some_labels(random, images)
    rows, tests = rotated(train, test)
    assert rows.shape[1] == min(images, numbers)
    np.testing.assert_allclose(rows @ rows.T, train.astype(np.float64) @ train.T, atol=1e-6)
    found = all_scores(rows, labels, tests, costs=[cost] * 20, machine=MACHINE)
    for column in range(20):
        known = labels[:, column] != 0
        for dual in (True, False):
            plain = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=dual, tol=1e-9, max_iter=100_000, random_state=0)
            plain.fit(train[known].astype(np.float64), labels[known, column])
            expected = plain.decision_function(test.astype(np.float64))
            np.testing.assert_allclose(found[:, column], expected, atol=5e-3)


def test_rows_that_are_not_of_full_rank_rotate_too():
    """Duplicate images, constant features, zero features."""
    random = np.random.default_rng(0)
    train = np.repeat(unit(random, 5, 40), 3, axis=0)
    train[:, 20:] = 0
    rows, tests = rotated(train, train)
    np.testing.assert_allclose(rows @ rows.T, train.astype(np.float64) @ train.T, atol=1e-7)
    np.testing.assert_allclose(tests, rows, atol=1e-7)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    random = np.random.default_rng(1)
    train, labels = unit(random, 40, 300), some_labels(random, 40)
    found = []
    for workers in (1, 3):
        monkeypatch.setattr(linear, "_workers", lambda workers=workers: workers)
        found.append(validated(train, labels, MACHINE, seed=0))
    assert np.array_equal(found[0], found[1], equal_nan=True)
    assert not np.array_equal(found[0], validated(train, labels, MACHINE, seed=1), equal_nan=True)


def test_cross_validation_is_that_of_a_plain_loop():
    random = np.random.default_rng(2)
    train, labels = unit(random, 60, 30), some_labels(random, 60, classes=3)
    found = validated(train, labels, MACHINE, seed=0)
    means = found.mean(axis=1)
    tried = next((c + 1 for c in range(1, 4) if means[c] < means[c - 1]), 4)
    assert np.isnan(found[tried:]).all()
    assert not np.isnan(found[:tried]).any()
    for c, cost in enumerate(MACHINE.costs[:tried]):
        for column in range(3):
            each = []
            for inside, outside in folds(60, MACHINE, seed=0):
                inside, outside = (part[labels[part, column] != 0] for part in (inside, outside))
                plain = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-6, max_iter=9999)
                plain.fit(train[inside].astype(np.float64), labels[inside, column])
                score = plain.decision_function(train[outside].astype(np.float64))
                each.append(average_precision_score(labels[outside, column] > 0, score))
            assert found[c, column] == pytest.approx(np.mean(each), abs=0.02)


def test_costs_rise_until_the_mean_over_classes_falls(monkeypatch):
    """The one that fell is still a choice for the classes that it suits; higher ones are not tried."""
    asked = []

    def pretended(rows, labels, test, *, costs, machine):
        asked.append(costs[0])
        good = {0.1: (0, 0), 1.0: (1, 1), 10.0: (-1, 2)}[costs[0]]
        return (labels_of_test > 0) * np.array(good) + random.normal(size=labels_of_test.shape) / 100

    random = np.random.default_rng(5)
    labels = some_labels(random, 30, classes=2)
    labels_of_test = labels[folds(30, dataclasses.replace(MACHINE, folds=2), seed=0)[0][1]]
    halves = [(np.arange(30), folds(30, dataclasses.replace(MACHINE, folds=2), seed=0)[0][1])]
    monkeypatch.setattr(linear, "folds", lambda *_, **__: halves)
    monkeypatch.setattr(linear, "all_scores", pretended)
    found = validated(unit(random, 30, 4), labels, MACHINE, seed=0)
    assert asked == [0.1, 1.0, 10.0]
    assert np.isnan(found[3]).all()
    assert best_costs(found, MACHINE)[0] == 1.0


def test_a_class_without_a_positive_in_a_fold_or_at_all():
    """A fold that shows no positive is left out of the mean; without any, the lowest cost stands."""
    random = np.random.default_rng(3)
    train = unit(random, 30, 50)
    labels = np.full((30, 4), -1)
    labels[0, 0] = 1  # one positive: two folds show none, and the third is trained without
    labels[:, 2] = 1  # no negative
    labels[:, 3] = 0  # ambiguous everywhere
    found = validated(train, labels, MACHINE, seed=0)
    assert np.allclose(found[:, 0], 1 / 10)  # a ranking of ties of ten images
    assert np.isnan(found[:, [1, 3]]).all()
    assert np.allclose(found[:, 2], 1)
    assert best_costs(found, MACHINE) == [0.1] * 4
    assert not all_scores(train, labels, train, costs=[1.0] * 4, machine=MACHINE)[:, 1:].any()
    with pytest.raises(Failed, match="3 folds of 2 training images"):
        folds(2, MACHINE, seed=0)


@pytest.mark.parametrize("case", range(8))
def test_packed_ranks_give_every_map_exactly(case):
    """By each definition, and under resampling; with ties, ambiguous images and classes without positives."""
    random = np.random.default_rng(case)
    images = int(random.integers(2, 60))
    labels = some_labels(random, images)
    labels[:, 3] = -1
    found = random.normal(size=(images, 20)).round(int(random.integers(0, 4)))
    kept = scores.per_image(found, labels)
    for metric in ("sklearn", "trapezoid", "11point"):
        whole = average_precisions(found, labels, metric=metric)
        again = average_precisions(kept["ranks"].astype(float), labels, metric=metric, tie=0.0)
        assert again == pytest.approx(whole, abs=1e-14)  # another order of summation
    weights = resamplings(images)[:50]
    np.testing.assert_allclose(scores.resampled(kept, weights), resampled_map(found, labels, weights), atol=1e-14)
    assert len(np.unique(kept["ranks"][:, 0])) <= 2 * (labels[:, 0] > 0).sum() + 2


def test_replicates_keep_their_values_to_a_hundredth_of_a_thousandth():
    values = np.array([np.nan, 0.2345678, 1.0, 1e-3])
    np.testing.assert_allclose(scores.unpack(scores.pack(values)), values, atol=1e-5)


@pytest.fixture
def outcome(encoder, tiny, work):
    recipe = svm.RECIPES["tiny"]
    return svm.evaluate(encoder, recipe, tiny / "VOCdevkit", seed=0, work=work, device=CPU)


def test_svm_from_an_encoder_to_its_scores(outcome, encoder, tiny, work):
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")
    metrics = outcome.metrics
    assert all(0 <= value <= 1 for value in metrics.values())
    assert {f"cv_{layer}" for layer in layers} == {name for name in metrics if name.startswith("cv_")}
    assert metrics["map_trapezoid"] == metrics["pool5_map_trapezoid"]
    best = max(layers, key=lambda layer: metrics[f"cv_{layer}"])
    assert svm.best_layer(metrics) == best
    assert metrics["best_map_sklearn"] == metrics[f"{best}_map_sklearn"]
    labels = outcome.per_image["labels"].astype(np.int64)
    assert (metrics["chance_map_sklearn"], metrics["chance_map_sklearn_spread"]) == chance_map(labels)
    weights = np.vstack([np.ones(len(labels), np.int64), resamplings(len(labels))])
    found = svm.resampled(outcome.per_image, weights)
    assert found[0] == pytest.approx(metrics["map_sklearn"], abs=1e-12)
    np.testing.assert_allclose(scores.unpack(outcome.per_image["replicates_pool5"]), found[1:], atol=1e-5)
    known = [ap for ap in outcome.per_class.values() if ap is not None]
    assert np.mean(known) == pytest.approx(metrics["map_sklearn"])
    again = svm.evaluate(encoder, svm.RECIPES["tiny"], tiny / "VOCdevkit", seed=0, work=work, device=CPU)
    assert again == outcome
    assert all(np.array_equal(again.per_image[key], value) for key, value in outcome.per_image.items())


def test_a_dead_layer_scores_as_a_ranking_of_ties(encoder, tiny, work, capsys):
    tensors = encoder.tensors | {
        "conv5.weight": torch.zeros_like(encoder.tensors["conv5.weight"]),
        "conv5.bias": torch.full((256,), -1.0),
    }
    dead = dataclasses.replace(encoder, tensors=tensors, sha256="dead")
    found = svm.evaluate(dead, svm.RECIPES["tiny"], tiny / "VOCdevkit", seed=0, work=work, device=CPU)
    assert "svm: pool5 is zero on every training image" in capsys.readouterr().err
    labels = found.per_image["labels"]
    shares = [(column > 0).sum() / (column != 0).sum() for column in labels.T if (column > 0).any()]
    assert found.metrics["pool5_map_sklearn"] == pytest.approx(np.mean(shares))


def test_constant_features_score_alike(encoder, tiny, work):
    tensors = {name: torch.zeros_like(tensor) for name, tensor in encoder.tensors.items()}
    tensors |= {name: torch.ones_like(tensor) for name, tensor in tensors.items() if name.endswith("bias")}
    constant = dataclasses.replace(encoder, tensors=tensors, sha256="constant")
    found = svm.evaluate(constant, svm.RECIPES["tiny"], tiny / "VOCdevkit", seed=0, work=work, device=CPU).metrics
    assert len({round(found[f"conv{k}_map_sklearn"], 9) for k in range(1, 6)}) == 1


def test_a_descriptor_has_one_layer(tiny, work):
    found = svm.evaluate(Descriptor("hog"), svm.RECIPES["tiny"], tiny / "VOCdevkit", seed=0, work=work, device=CPU)
    assert (found.receipt.loaded, found.receipt.expected) == (0, 0)
    assert found.metrics["map_sklearn"] == found.metrics["hog_map_sklearn"] == found.metrics["best_map_sklearn"]
    assert "pool5_map_sklearn" not in found.metrics


def test_a_sample_has_k_positives_and_nineteen_times_as_many_negatives():
    random = np.random.default_rng(4)
    labels = some_labels(random, 400)
    labels[:, 0] = -1
    labels[:3, 0] = 1
    for k in (1, 2, 8):
        shots = low_shot.sample(labels, k, seed=0)
        assert ((shots == labels) | (shots == 0)).all()
        assert (shots > 0).sum(0).tolist() == [min(k, 3), *[k] * 19]
        assert (shots < 0).sum(0).tolist() == np.minimum(19 * k, (labels < 0).sum(0)).tolist()
    assert not np.array_equal(low_shot.sample(labels, 2, seed=0), low_shot.sample(labels, 2, seed=1))


def test_low_shot_from_an_encoder_to_its_scores(encoder, tiny, work):
    recipe = dataclasses.replace(low_shot.RECIPES["tiny"], sizes=(1, 16), samples=2)
    found = low_shot.evaluate(encoder, recipe, tiny / "VOCdevkit", seed=0, work=work, device=CPU)
    assert all(0 <= value <= 1 for value in found.metrics.values())
    assert found.metrics["k16_filled"] < found.metrics["k1_filled"] <= 1
    labels = found.per_image["labels"]
    weights = np.vstack([np.ones(len(labels), np.int64), resamplings(len(labels))])
    headline = low_shot.resampled(found.per_image, weights)
    assert headline[0] == pytest.approx(found.metrics["k16_map_sklearn"], abs=1e-12)
    np.testing.assert_allclose(scores.unpack(found.per_image["replicates_k16"]), headline[1:], atol=1e-5)
    known = [ap for ap in found.per_class.values() if ap is not None]
    assert np.mean(known) == pytest.approx(found.metrics["k16_map_sklearn"])


def test_the_recipes_are_the_papers():
    recipe = low_shot.RECIPES["paper"]
    assert (recipe.sizes, recipe.samples) == ((1, 2, 4, 8, 16, 32, 64, 96), 5)
    assert low_shot.HEADLINE in recipe.sizes
    machine = svm.RECIPES["paper"].machine
    assert (machine.positive, machine.iterations, machine.tolerance, machine.folds) == (2.0, 2000, 1e-4, 3)


def test_an_ap_is_scikit_learns_over_the_images_that_count():
    found = aps(np.array([[0.9], [0.8], [0.7]]), np.array([[-1], [0], [1]]))
    assert found == [0.5]
    assert np.isnan(aps(np.zeros((2, 1)), np.array([[-1], [-1]]))[0])
    assert len(voc.CLASSES) == 20
