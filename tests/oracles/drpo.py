"""DRPO in numpy, written from the paper (QoQ-Med, Sec. 3.3, App. B) and the house plan, not from the implementation.

Loops over questions and rollouts; scikit-learn's KMeans with many restarts finds the clusters. Compare on rewards whose
clusters are well separated: on noisy ones k-means has many near-equal optima.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

EPS = 1e-6


def choose_k(vectors: np.ndarray, k_max: int, tau: float) -> tuple[int, np.ndarray]:
    """App. B.1: labels for the elbow's k."""
    cap = min(k_max, len(np.unique(vectors, axis=0)))
    inertia, labels = {}, {}
    for k in range(1, cap + 1):
        with threadpool_limits(1):  # many tiny fits: threads only wait for each other
            fit = KMeans(k, n_init=20, tol=0, max_iter=1000, random_state=1).fit(vectors)
        inertia[k], labels[k] = fit.inertia_, fit.labels_
        if k >= 3 and inertia[k - 1] - inertia[k] < tau * (inertia[k - 2] - inertia[k - 1]):
            return k - 1, labels[k - 1]
    return cap, labels[cap]


def drpo(
    rewards: list[list[float | None]],
    domains: list[str],
    kl: list[list[float]] | None = None,
    difficulty: list[list[float]] | None = None,
    cluster: bool = True,
    k_max: int = 10,
    tau: float = 0.10,
    quantile: float = 0.9,
) -> tuple[list[list[float]], float | None]:
    """rewards[q][i], None where a rollout is invalid -> advantages[q][i] and t (None without KL)."""
    valid = [[i for i, r in enumerate(row) if r is not None] for row in rewards]
    kept = [q for q in range(len(rewards)) if len(valid[q]) >= 2]
    hard = rewards if difficulty is None else difficulty
    s: dict[tuple[int, int], float] = {}
    for q in kept:  # Eq. 1
        row = [rewards[q][i] for i in valid[q]]
        for i in valid[q]:
            flat = max(row) == min(row)
            s[q, i] = 0.0 if flat else (rewards[q][i] - np.mean(row)) / (np.std(row, ddof=1) + EPS)
    for g in set(domains):  # Eq. 2 and 3
        inside = [q for q in kept if domains[q] == g]
        if not inside:
            continue
        labels = np.zeros(len(inside), dtype=int)
        if cluster and k_max > 1:
            fill = [np.mean([rewards[q][i] for i in valid[q]]) for q in inside]
            vectors = [[f if r is None else r for r in rewards[q]] for q, f in zip(inside, fill, strict=True)]
            _, labels = choose_k(np.array(vectors), k_max, tau)

        def temperature(questions: list[int]) -> float:
            mu = np.mean([hard[q][i] for q in questions for i in valid[q]])
            return max(np.sqrt(len(questions)) * mu, EPS)

        t_domain = temperature(inside)
        for c in set(labels):
            members = [q for q, label in zip(inside, labels, strict=True) if label == c]
            t_cluster = temperature(members) if cluster and k_max > 1 else 1.0
            for q in members:
                for i in valid[q]:
                    s[q, i] /= t_domain * t_cluster
    threshold = None
    if kl is not None and s:  # Eq. 4 and 5
        z = {(q, i): value * sum(kl[q][j] for j in valid[q]) for (q, i), value in s.items()}
        threshold = float(np.quantile(list(z.values()), quantile))
        if threshold > 0:
            s = {key: value * threshold / (threshold + max(z[key], 0)) for key, value in s.items()}
    spread = np.std(list(s.values()), ddof=1) if s else 0.0
    advantages = [
        [s[q, i] / spread if (q, i) in s and spread > 0 else 0.0 for i in range(len(row))]
        for q, row in enumerate(rewards)
    ]
    return advantages, threshold
