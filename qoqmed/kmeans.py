"""K-means in float64 on the CPU, the same for any order of its input, and the elbow that chooses k.

Equal rows are merged and weighted, and the distinct rows sorted, before anything is drawn: order and copies change
neither seeds nor result, and rewards, which take few values, become small. All restarts run side by side.
One thread does the work: sums come out the same on any number of cores, and small products run faster.
Seeding: k-means++ (Arthur and Vassilvitskii 2007); the seeds for k are the first k of those for k + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ITERATIONS = 300
GRAIN_BITS = 40  # kept of the largest value: rows that agree in them are equal but for rounding
SAME = 1e-9  # restarts whose inertia differs by less, relatively, tie: the first wins, not the luck of rounding


@dataclass(frozen=True)
class Clustering:
    """centroids [k, F] float64; assignment [N] long, a centroid's index each; inertia: sum of squared distances."""

    centroids: Tensor
    assignment: Tensor
    inertia: float


@dataclass(frozen=True)
class Elbow:
    """The chosen k and its clustering. inertias: of k = 1, 2, ... as far as tried.

    hit_cap: an elbow was looked for (at least 3 clusters allowed) and none was found, so that k is the cap.
    """

    k: int
    clustering: Clustering
    inertias: tuple[float, ...]
    hit_cap: bool


@dataclass(frozen=True)
class _Points:
    """rows [U, F], distinct and sorted; weight [U]: copies of each; inverse [N]: the row of each input vector."""

    rows: Tensor
    weight: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> _Points:
        exact = vectors.detach().to("cpu", torch.float64)
        grain = 2.0 ** (int(torch.frexp(exact.abs().max()).exponent) - GRAIN_BITS)
        rows, inverse, counts = torch.unique(
            (exact / grain).round() * grain, dim=0, return_inverse=True, return_counts=True
        )
        return cls(rows, counts.double(), inverse)

    def nearest(self, centroids: Tensor) -> Tensor:
        """Index [S, U] of the nearest of centroids [S, k, F], from differences: |c|^2 - 2 x.c would lose close rows."""
        return torch.cdist(self.rows, centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(2)

    def distances(self, centroids: Tensor, assignment: Tensor) -> Tensor:
        """Squared distance [S, U] of each row to its own centroid."""
        own = centroids.gather(1, assignment[:, :, None].expand(-1, -1, centroids.shape[2]))
        return (self.rows - own).square().sum(2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, in this process, until the block ends."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seeds(points: _Points, k: int, restarts: int, seed: int) -> Tensor:
    """k-means++: [S, k, F], each further seed drawn by weight times squared distance to the nearest seed so far."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Tensor] = []
    nearest: Tensor | None = None
    last = points.rows.shape[0] - 1
    for _ in range(k):
        mass = (points.weight.expand(restarts, -1) if nearest is None else nearest * points.weight).cumsum(1)
        draw = torch.rand(restarts, 1, generator=generator, dtype=torch.float64) * mass[:, -1:]
        index = torch.searchsorted(mass, draw, right=True).clamp_(max=last)
        chosen.append(points.rows[index[:, 0]])
        distance = (points.rows - chosen[-1][:, None]).square().sum(2)  # exactly 0 at the seed itself
        nearest = distance if nearest is None else torch.minimum(nearest, distance)
    return torch.stack(chosen, 1)


def _refill(centroids: Tensor, empty: Tensor, points: _Points, assignment: Tensor) -> None:
    """Move each empty centroid, in place, to the row farthest from its own: the inertia falls strictly."""
    distance = points.distances(centroids, assignment)
    for start, cluster in empty.nonzero().tolist():
        farthest = int(distance[start].argmax())
        centroids[start, cluster] = points.rows[farthest]
        distance[start, farthest] = 0.0


def _lloyd(points: _Points, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations of each restart until its assignment repeats: centroids [S, k, F], assignment [S, U]."""
    clusters = torch.arange(seeds.shape[1])[:, None]
    centroids, assignment = seeds.clone(), points.nearest(seeds)
    moving = torch.arange(len(seeds))
    for _ in range(MAX_ITERATIONS):
        current = assignment[moving]
        members = (current[:, None] == clusters) * points.weight  # [S', k, U]
        counts = members.sum(2)
        means = (members @ points.rows) / counts.clamp(min=1.0)[:, :, None]
        if not counts.all():
            _refill(means, counts == 0, points, current)
        centroids[moving] = means
        assignment[moving] = points.nearest(means)
        moving = moving[(assignment[moving] != current).any(1)]
        if moving.numel() == 0:
            break
    return centroids, assignment


def _cluster(points: _Points, seeds: Tensor) -> Clustering:
    """The best of the restarts, its clusters numbered by their first row in sorted order."""
    centroids, assignment = _lloyd(points, seeds)
    inertias = points.distances(centroids, assignment) @ points.weight
    best = int((inertias <= inertias.min() * (1 + SAME)).nonzero()[0])
    first = (assignment[best][:, None] == torch.arange(seeds.shape[1])).int().argmax(0)  # [k]
    order = first.argsort()
    return Clustering(centroids[best][order], order.argsort()[assignment[best]][points.inverse], float(inertias[best]))


@one_thread()
def kmeans(vectors: Tensor, k: int, seed: int = 0, restarts: int = 10) -> Clustering:
    """K-means of vectors [N, F]; 1 <= k <= number of distinct vectors."""
    points = _Points.of(vectors)
    if not 1 <= k <= len(points.rows):
        raise ValueError(f"k must be between 1 and the {len(points.rows)} distinct vectors, got {k}")
    return _cluster(points, _seeds(points, k, restarts, seed))


@one_thread()
def elbow(vectors: Tensor, max_clusters: int = 10, tolerance: float = 0.10, seed: int = 0, restarts: int = 10) -> Elbow:
    """K-means of vectors [N, F], N >= 1, with k by the elbow (QoQ-Med, App. B.1).

    With dI_k = I_{k-1} - I_k, the first k >= 3 with dI_k < tolerance * dI_{k-1} gives k - 1; else k is the cap, the
    smaller of `max_clusters` and the number of distinct vectors.
    """
    points = _Points.of(vectors)
    cap = min(max_clusters, len(points.rows))
    seeds = _seeds(points, cap, restarts, seed)
    tried: list[Clustering] = []
    for k in range(1, cap + 1):
        tried.append(_cluster(points, seeds[:, :k]))
        inertias = tuple(clustering.inertia for clustering in tried)
        if k >= 3 and inertias[-2] - inertias[-1] < tolerance * (inertias[-3] - inertias[-2]):
            return Elbow(k - 1, tried[-2], inertias, hit_cap=False)
    return Elbow(cap, tried[-1], tuple(clustering.inertia for clustering in tried), hit_cap=cap >= 3)
