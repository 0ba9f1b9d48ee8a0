"""Estimators other than DRPO, in numpy and loops, written from their papers and not from the implementation.

rewards[q][i], None where a rollout is invalid; lengths[q][i] in tokens; penalty[q][i][t] and values[q][i][t].
Sums over later tokens are written out, not as recursions.
"""

from __future__ import annotations

import numpy as np

Rewards = list[list[float | None]]
PerToken = list[list[list[float]]]


def of_groups(rewards: Rewards, kind: str) -> list[list[float]]:
    """kind: grpo (Shao et al. 2024), dr_grpo (Liu et al. 2025) or rloo (Ahmadian et al. 2024)."""
    out = []
    for row in rewards:
        known = [r for r in row if r is not None]
        mine = []
        for i, r in enumerate(row):
            if r is None or len(known) < 2:
                mine.append(0.0)
            elif kind == "rloo":
                mine.append(r - np.mean([other for j, other in enumerate(row) if j != i and other is not None]))
            else:
                mine.append((r - np.mean(known)) / (1.0 if kind == "dr_grpo" else np.std(known, ddof=1) + 1e-6))
        out.append(mine)
    return out


def remax(rewards: Rewards, greedy: list[float]) -> list[list[float]]:
    """Li et al. 2024; greedy[q] is nan where there is none."""
    return [[0.0 if r is None or np.isnan(g) else r - g for r in row] for row, g in zip(rewards, greedy, strict=True)]


def token_rewards(reward: float, length: int, penalty: list[float] | None) -> list[float]:
    return [(reward if t == length - 1 else 0.0) - (penalty[t] if penalty else 0.0) for t in range(length)]


def whitened(tokens: PerToken, valid: list[list[bool]]) -> PerToken:
    """(x - mean) / sqrt(unbiased variance + 1e-8) over the tokens of valid responses; 0 for the others."""
    own = [x for row, ok in zip(tokens, valid, strict=True) for each, v in zip(row, ok, strict=True) for x in each if v]
    mean, spread = np.mean(own), np.sqrt(np.var(own, ddof=1) + 1e-8)
    return [
        [[(x - mean) / spread if v else 0.0 for x in each] for each, v in zip(row, ok, strict=True)]
        for row, ok in zip(tokens, valid, strict=True)
    ]


def reinforce_pp(
    rewards: Rewards, lengths: list[list[int]], penalty: PerToken | None, discount: float, baseline: str
) -> PerToken:
    """Hu et al. 2025, discounted; baseline "group": with Baseline."""
    tokens, valid = [], []
    for q, row in enumerate(rewards):
        known = [r for r in row if r is not None]
        usable = len(known) >= (2 if baseline == "group" else 1)
        mine = []
        for i, (r, length) in enumerate(zip(row, lengths[q], strict=True)):
            own = 0.0 if r is None else r - (np.mean(known) if baseline == "group" else 0.0)
            steps = token_rewards(own, length, penalty[q][i] if penalty else None)
            mine.append([sum(discount ** (k - t) * steps[k] for k in range(t, length)) for t in range(length)])
        tokens.append(mine)
        valid.append([r is not None and usable for r in row])
    return whitened(tokens, valid)


def gae(
    rewards: Rewards,
    lengths: list[list[int]],
    penalty: PerToken | None,
    values: PerToken,
    discount: float,
    lam: float,
    whiten: bool,
) -> tuple[PerToken, PerToken]:
    """Schulman et al. 2016: advantages and returns; invalid responses have 0 and their values."""
    tokens, returns = [], []
    for q, row in enumerate(rewards):
        mine, theirs = [], []
        for i, (r, length) in enumerate(zip(row, lengths[q], strict=True)):
            v = [*values[q][i], 0.0]
            steps = token_rewards(0.0 if r is None else r, length, penalty[q][i] if penalty else None)
            delta = [steps[t] + discount * v[t + 1] - v[t] for t in range(length)]
            a = [sum((discount * lam) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]
            mine.append([0.0] * length if r is None else a)
            theirs.append([x + y for x, y in zip(mine[-1], v, strict=False)])
        tokens.append(mine)
        returns.append(theirs)
    return (whitened(tokens, [[r is not None for r in row] for row in rewards]) if whiten else tokens), returns
