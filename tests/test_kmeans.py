"""K-means and the elbow. Oracle: scikit-learn 1.9's KMeans on separated data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from qoqmed.kmeans import elbow, kmeans

CENTRES = torch.tensor([[0.0, 0, 0], [2, 0, 0.2], [0, 3, 0], [5, 5, 1]], dtype=torch.float64)


def blobs(n: int = 30, spread: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(n, 3, generator=generator, dtype=torch.float64) * spread
    return CENTRES[torch.arange(n) % 4] + noise


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_separated_data_as_scikit_learn(k: int) -> None:
    vectors = blobs()
    oracle = KMeans(k, n_init=20, tol=0, random_state=0).fit(vectors.numpy())
    found = kmeans(vectors, k)
    assert found.inertia == pytest.approx(oracle.inertia_, rel=1e-9)
    order = np.lexsort(oracle.cluster_centers_.T)
    mine = np.lexsort(found.centroids.numpy().T)
    np.testing.assert_allclose(found.centroids.numpy()[mine], oracle.cluster_centers_[order], atol=1e-9)
    same = found.assignment[:, None] == found.assignment
    np.testing.assert_array_equal(same.numpy(), oracle.labels_[:, None] == oracle.labels_)


def test_noisy_data_is_near_the_best_of_scikit_learn() -> None:
    vectors = torch.rand(120, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (3, 6, 10):
        oracle = KMeans(k, n_init=20, random_state=0).fit(vectors.numpy()).inertia_
        assert kmeans(vectors, k).inertia < 1.03 * oracle


def test_same_seed_same_result_and_order_does_not_matter() -> None:
    vectors = torch.rand(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    first, again, shuffled = kmeans(vectors, 7), kmeans(vectors, 7), kmeans(vectors[shuffle], 7)
    assert torch.equal(first.assignment, again.assignment)
    assert torch.equal(first.assignment[shuffle], shuffled.assignment)
    assert torch.equal(first.centroids, shuffled.centroids)
    assert first.inertia == shuffled.inertia


def test_copies_weigh() -> None:
    """Hand-computed: 0, 0, 0, 1 | 10. The first cluster's mean is 1/4, its inertia 3/16 + 9/16."""
    found = kmeans(torch.tensor([[0.0], [10], [0], [1], [0]]), 2)
    assert found.assignment.tolist() == [0, 1, 0, 0, 0]
    assert found.centroids[:, 0].tolist() == [0.25, 10.0]
    assert found.inertia == pytest.approx(0.75)


def test_every_cluster_has_a_member() -> None:
    """Discrete rewards, where Lloyd's iterations do empty clusters."""
    for seed in range(20):
        vectors = torch.randint(0, 2, (40, 4), generator=torch.Generator().manual_seed(seed)).double()
        unique = len(torch.unique(vectors, dim=0))
        for k in range(1, unique + 1):
            assert kmeans(vectors, k, seed=seed, restarts=3).assignment.bincount(minlength=k).min() > 0


def test_an_emptied_cluster_moves_to_the_farthest_row() -> None:
    """Seeds whose middle centroid loses every row at the first update: found by hand through the private seam."""
    from qoqmed.kmeans import _lloyd, _Points

    points = _Points.of(torch.tensor([[0.0], [1.0], [10.0], [11.0]]))
    centroids, assignment = _lloyd(points, torch.tensor([[[0.0], [100.0], [10.5]]], dtype=torch.float64))
    assert assignment[0].bincount(minlength=3).tolist() in ([2, 1, 1], [1, 1, 2])
    assert centroids.shape == (1, 3, 1)


def test_rows_equal_but_for_rounding_are_one() -> None:
    vectors = torch.tensor([[0.1 + 0.2, 1.0], [0.3, 1.0], [0.6, 1.0], [0.2 * 3, 1.0]], dtype=torch.float64)
    found = elbow(vectors)
    assert found.k == 2
    assert found.clustering.assignment.tolist() == [0, 0, 1, 1]


def test_k_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="2 distinct vectors, got 3"):
        kmeans(torch.tensor([[0.0], [1.0], [1.0]]), 3)


def test_elbow_finds_the_blobs() -> None:
    vectors = blobs(spread=0.001)[torch.arange(30) % 4 != 3]  # three of them
    found = elbow(vectors)
    assert found.k == 3
    assert len(found.inertias) == 4  # k = 4 was tried, and did not pay
    assert not found.hit_cap


def test_elbow_by_hand() -> None:
    """Rows 0, 1, 10: I = 182/3, 1/2, 0; dI_2 = 60.17, dI_3 = 0.5 < 0.1 dI_2, so k = 2."""
    found = elbow(torch.tensor([[0.0], [1.0], [10.0]]))
    assert found.inertias == pytest.approx([182 / 3, 0.5, 0.0])
    assert found.k == 2
    assert found.clustering.assignment.tolist() == [0, 0, 1]


def test_elbow_falls_to_the_cap() -> None:
    """Rows 0, 1, 2, 3: I = 5, 1, 1/2, 0; dI = 4, 1/2, 1/2: dI_3 >= 0.1 dI_2 and dI_4 >= 0.1 dI_3."""
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert elbow(line).inertias == pytest.approx([5.0, 1.0, 0.5, 0.0])
    assert (elbow(line).k, elbow(line).hit_cap) == (4, True)
    assert (elbow(line, max_clusters=3).k, elbow(line, max_clusters=3).hit_cap) == (3, True)
    assert elbow(line, tolerance=0.2).k == 2


def test_elbow_of_few_distinct_rows() -> None:
    same = elbow(torch.full((5, 3), 0.7))
    assert (same.k, same.hit_cap, same.clustering.inertia) == (1, False, 0.0)
    two = elbow(torch.tensor([[0.0], [0.0], [1.0]]))
    assert (two.k, two.hit_cap) == (2, False)


def test_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    kmeans(blobs(), 2)
    assert torch.get_num_threads() == before
