"""The one live table of a study: properties x folds."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.table import Table

from mips_dist.train.results import NETWORK, Cell, FoldResult

FAILED = "failed"


class Board:
    """What is done, at work and failed, as a table that `rich.live.Live` draws again and again.

    A place shows the R2 of the network (its mean over seeds), the epoch while it trains, or
    `failed`; the other models of the study are counted below.

    Parameters
    ----------
    cells
        All cells of the study.
    results
        Those that are finished.
    """

    def __init__(self, cells: list[Cell], results: Iterable[FoldResult]) -> None:
        self._cells = cells
        self._r2: dict[Cell, float] = {}
        self._epoch: dict[Cell, int] = {}
        self._failed: set[Cell] = set()
        self._models_done, self._models_wanted = 0, 0
        for result in results:
            self.show_result(result)

    def show_result(self, result: FoldResult) -> None:
        """Show a finished cell."""
        self._r2[result.cell()] = result.r2

    def show_epoch(self, job: dict[str, Any], epoch: int) -> None:
        """Show how far a training is."""
        self._epoch.update((Cell(*cell), epoch) for cell in job["cells"])

    def show_failure(self, job: dict[str, Any]) -> None:
        """Show that a training failed."""
        self._failed.update(Cell(*cell) for cell in job.get("cells", ()))

    def expect_models(self, count: int) -> None:
        """Show that so many models are now trained on all rows."""
        self._models_done, self._models_wanted = 0, count

    def show_models(self, count: int) -> None:
        """Count finished models."""
        self._models_done += count

    def __rich__(self) -> Table:
        """Return the table as it stands."""
        folds = sorted({cell.fold for cell in self._cells})
        table = Table(caption=self._caption(), caption_justify="left")
        table.add_column("R2")
        for fold in folds:
            table.add_column(f"fold {fold}", justify="right", no_wrap=True, min_width=9)
        for name in dict.fromkeys(cell.property for cell in self._cells):
            table.add_row(name, *(self._place(name, fold) for fold in folds))
        return table

    def _place(self, name: str, fold: int) -> str:
        cells = [c for c in self._cells if (c.model, c.property, c.fold) == (NETWORK, name, fold)]
        done = [cell for cell in cells if cell in self._r2]
        if any(cell in self._failed for cell in cells):
            return FAILED
        seeds = f" ({len(done)}/{len(cells)})" if len(cells) > 1 else ""
        if len(done) == len(cells):
            return f"{np.mean([self._r2[c] for c in done]):.3f}" if done else ""
        epochs = [self._epoch[c] for c in cells if c in self._epoch and c not in self._r2]
        if epochs:
            return f"epoch {epochs[-1]}{seeds}"
        return seeds.strip() if done else ""

    def _caption(self) -> str:
        parts = []
        for model in dict.fromkeys(cell.model for cell in self._cells):
            cells = [cell for cell in self._cells if cell.model == model]
            failed = sum(cell in self._failed for cell in cells)
            parts.append(
                f"{model} {sum(cell in self._r2 for cell in cells)}/{len(cells)}"
                + f" ({failed} {FAILED})" * (failed > 0)
            )
        if self._models_wanted:
            parts.append(f"models on all rows {self._models_done}/{self._models_wanted}")
        return ", ".join(parts)
