"""Least squares that never sees all of its rows at once: sums of products, a solution, and its error on other rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["NormalEquations", "solve"]


@dataclass(slots=True)
class _Sums:
    """Over the rows x and what is missing e: xᵀx [K, K], xᵀe [K, H] and |e|²."""

    gram: torch.Tensor
    cross: torch.Tensor
    missing: float = 0.0

    def error(self, change: torch.Tensor) -> float:
        """|e - x change|² over all rows."""
        return self.missing - 2 * float((change * self.cross).sum()) + float((change * (self.gram @ change)).sum())


@dataclass(slots=True)
class NormalEquations:
    """For a Linear of ``inputs`` columns (one more with a bias) and ``outputs`` rows: what must be added to it.

    Rows are summed in float32, or float64 where the rows are float64, and the sums are kept in float64 on the CPU, in
    two lots: those that are fitted and those that are held out and judge. Memory: 2 * 8 * K * (K + H) bytes.
    """

    inputs: int
    outputs: int
    affine: bool = False
    fitted: _Sums = field(init=False)
    held_out: _Sums = field(init=False)

    def __post_init__(self) -> None:
        size = self.inputs + self.affine
        self.fitted, self.held_out = (
            _Sums(torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, self.outputs, dtype=torch.float64))
            for _ in range(2)
        )

    def add(self, x: torch.Tensor, missing: torch.Tensor, *, held_out: bool) -> None:
        """Rows of what the Linear is given [..., K] and of what its output lacks [..., H]."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        x, missing = (each.detach().flatten(0, -2).to(wide) for each in (x, missing))
        if self.affine:
            x = torch.cat((x, x.new_ones(len(x), 1)), 1)
        sums = self.held_out if held_out else self.fitted
        sums.gram += (x.T @ x).to("cpu", torch.float64)
        sums.cross += (x.T @ missing).to("cpu", torch.float64)
        sums.missing += float(missing.square().sum())

    def change(self, ridge: float, *, everything: bool = False) -> torch.Tensor | None:
        """What to add [K, H], fitted on the fitted rows or on ``everything``; None where it cannot be solved.

        ridge: relative to the mean of the Gram matrix's diagonal, and toward no change, not toward 0. A bias is free.
        """
        gram, cross = self.fitted.gram, self.fitted.cross
        if everything:
            gram, cross = gram + self.held_out.gram, cross + self.held_out.cross
        return solve(gram, cross, ridge, free=self.affine)


def solve(gram: torch.Tensor, cross: torch.Tensor, ridge: float, *, free: bool = False) -> torch.Tensor | None:
    """``(gram + ridge * mean diagonal)⁻¹ cross``, the last unknown without a ridge if ``free``; None if singular."""
    size = len(gram) - free
    shift = torch.zeros(len(gram), dtype=gram.dtype)
    shift[:size] = ridge * float(gram.diagonal()[:size].mean())
    factor, failed = torch.linalg.cholesky_ex(gram + shift.diag())
    if int(failed):
        return None
    found = torch.cholesky_solve(cross, factor)
    return found if bool(torch.isfinite(found).all()) else None
