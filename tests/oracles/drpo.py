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


Step = tuple[list[list[float | None]], list[str], list[list[float]] | None]  # rewards, domains, difficulty


def kept(rewards: list[list[float | None]]) -> list[int]:
    return [q for q, row in enumerate(rewards) if sum(r is not None for r in row) >= 2]


def vector(row: list[float | None], ordered: bool) -> list[float]:
    mean = np.mean([r for r in row if r is not None])
    filled = [mean if r is None else r for r in row]
    return sorted(filled) if ordered else filled


def temperature(questions: list[list[float]]) -> float:
    """Of questions, each the difficulties of its valid rollouts."""
    return max(np.sqrt(len(questions)) * np.mean([d for question in questions for d in question]), EPS)


def scales(steps: list[Step], cluster: bool, k_max: int, tau: float, ordered: bool) -> dict[int, float]:
    """Eq. 2: 1 / (T_g T_c) of the questions kept of the last step, from the questions of all steps."""
    out: dict[int, float] = {}
    for g in set(steps[-1][1]):
        members, vectors, difficulties = [], [], []
        for s, (rewards, domains, difficulty) in enumerate(steps):
            for q in kept(rewards):
                if domains[q] == g:
                    hard = (rewards if difficulty is None else difficulty)[q]
                    members.append(q if s == len(steps) - 1 else None)
                    vectors.append(vector(rewards[q], ordered))
                    difficulties.append([hard[i] for i, r in enumerate(rewards[q]) if r is not None])
        if all(q is None for q in members):
            continue
        labels = np.zeros(len(members), dtype=int)
        clustered = cluster and k_max > 1
        if clustered:
            _, labels = choose_k(np.array(vectors), k_max, tau)
        for q, label in zip(members, labels, strict=True):
            if q is not None:
                alike = [d for d, other in zip(difficulties, labels, strict=True) if other == label]
                out[q] = 1 / (temperature(difficulties) * (temperature(alike) if clustered else 1.0))
    return out


def drpo(
    rewards: list[list[float | None]],
    domains: list[str],
    kl: list[list[float]] | None = None,
    difficulty: list[list[float]] | None = None,
    cluster: bool = True,
    k_max: int = 10,
    tau: float = 0.10,
    quantile: float = 0.9,
    ordered: bool = False,
    past: list[Step] | None = None,
    max_ratio: float | None = None,
) -> tuple[list[list[float]], float | None]:
    """rewards[q][i], None where a rollout is invalid -> advantages[q][i] and t (None without KL).

    past: steps whose questions count in Eq. 2. max_ratio: scales are at most so many times the smallest that acts.
    """
    valid = [[i for i, r in enumerate(row) if r is not None] for row in rewards]
    s: dict[tuple[int, int], float] = {}
    acting = set()
    for q in kept(rewards):  # Eq. 1
        row = [rewards[q][i] for i in valid[q]]
        for i in valid[q]:
            flat = max(row) == min(row)
            s[q, i] = 0.0 if flat else (rewards[q][i] - np.mean(row)) / (np.std(row, ddof=1) + EPS)
            acting |= set() if flat else {q}
    scale = scales([*(past or []), (rewards, domains, difficulty)], cluster, k_max, tau, ordered)
    if max_ratio is not None and acting:
        most = max_ratio * min(scale[q] for q in acting)
        scale = {q: min(value, most) for q, value in scale.items()}
    s = {(q, i): value * scale[q] for (q, i), value in s.items()}  # Eq. 3
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
