"""The one-to-one assignment of largest total gain (the linear assignment problem), in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def assign(gain: NDArray[Any]) -> list[int]:
    """The column of each row such that the sum of gains is largest and no column is used twice. gain: [R, C], finite.

    With more rows than columns the rows that are left out get -1.

    Source: Jonker and Volgenant (1987), shortest augmenting paths: each row in turn finds the cheapest path of
    re-assignments that ends in a free column, under prices that keep every reduced cost at zero or above.
    """
    import numpy as np

    if gain.shape[0] > gain.shape[1]:
        rows = [-1] * gain.shape[0]
        for column, row in enumerate(assign(gain.T)):
            rows[row] = column
        return rows
    cost = gain.max(initial=0.0) - gain.astype(np.float64)
    n_rows, n_columns = cost.shape
    row_price, column_price = np.zeros(n_rows), np.zeros(n_columns)
    owner = np.full(n_columns, -1)
    for start in range(n_rows):
        distance = cost[start] - row_price[start] - column_price
        came_from = np.full(n_columns, -1)
        done = np.zeros(n_columns, dtype=bool)
        while True:
            column = int(np.where(done, np.inf, distance).argmin())
            reach = distance[column]
            if owner[column] < 0:
                break
            done[column] = True
            row = owner[column]
            through = reach + cost[row] - row_price[row] - column_price
            shorter = ~done & (through < distance)
            distance[shorter] = through[shorter]
            came_from[shorter] = column
        row_price[owner[done]] += reach - distance[done]
        row_price[start] += reach
        column_price[done] -= reach - distance[done]
        while came_from[column] >= 0:
            owner[column] = owner[came_from[column]]
            column = int(came_from[column])
        owner[column] = start
    chosen = [-1] * n_rows
    for column, row in enumerate(owner):
        if row >= 0:
            chosen[row] = column
    return chosen
