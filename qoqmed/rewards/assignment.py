"""The assignment problem by shortest augmenting paths (Kuhn 1955; Jonker and Volgenant 1987), O(N^2 M) for N <= M."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]


def assign(cost: Costs) -> list[tuple[int, int]]:
    """[N, M] finite costs -> min(N, M) pairs (row, column) of least total cost, no row or column twice, sorted."""
    if cost.shape[0] > cost.shape[1]:
        return sorted((row, column) for column, row in assign(cost.T))
    rows, columns = cost.shape
    if rows == 1:
        return [(0, int(cost.argmin()))]
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)  # dual variables; place 0 is no row and no column
    owner = np.zeros(columns + 1, dtype=np.intp)  # row of each column, from 1; 0: free
    padded = np.pad(cost, ((1, 0), (1, 0)), constant_values=np.inf)
    for row in range(1, rows + 1):
        owner[0] = row
        _grow(padded, of_row, of_column, owner)
    return sorted((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column])


def _grow(cost: Costs, of_row: Costs, of_column: Costs, owner: npt.NDArray[np.intp]) -> None:
    """cost: [N + 1, M + 1]. Gives the row at `owner[0]` a column, along the cheapest path that moves other rows on."""
    least = np.full(len(owner), np.inf)
    came = np.zeros(len(owner), dtype=np.intp)
    used = np.zeros(len(owner), dtype=bool)
    column = 0
    while owner[column]:
        used[column] = True
        row = owner[column]
        reduced = cost[row] - of_row[row] - of_column
        better = ~used & (reduced < least)
        least[better], came[better] = reduced[better], column
        following = int(np.where(used, np.inf, least).argmin())
        step = least[following]
        of_row[owner[used]] += step
        of_column[used] -= step
        least[~used] -= step
        column = following
    while column:
        owner[column] = owner[came[column]]
        column = int(came[column])
