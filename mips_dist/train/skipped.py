"""A step whose loss or gradient was not finite: nobody applied it, and its samples are named."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.distributed as dist

from mips_dist.data.batch import PolymerBatch
from mips_dist.data.files import write_atomically
from mips_dist.data.shards import read_index
from mips_dist.errors import MipsError
from mips_dist.train.metrics import StepReport

if TYPE_CHECKING:
    from mips_dist.train.pretraining import Run

_MOST_IN_A_ROW = 5


def record_skipped(
    run: "Run", step: int, in_a_row: int, report: StepReport, batches: Sequence[PolymerBatch]
) -> str:
    """Write ``skipped/step-N.json`` with the samples of all ranks; all ranks must call it.

    Parameters
    ----------
    run
        The run.
    step
        Number of the step, from 1.
    in_a_row
        Steps that were not applied one after the other, this one included.
    report
        What came of it.
    batches
        This rank's micro-batches.

    Returns
    -------
    A line for the user.

    Raises
    ------
    MipsError
        It was the fifth in a row.
    """
    ranks = run.ranks
    parts: list[list[list[int]]] = [[] for _ in range(ranks.world_size)]
    dist.all_gather_object(parts, [batch.sample_index.tolist() for batch in batches])
    path = run.folder.path / "skipped" / f"step-{step}.json"

    def write() -> None:
        index = read_index(run.config.shards)
        spelling = dict(zip(index.row.tolist(), index.psmiles, strict=True))
        micro_batches = [
            {
                "rank": rank,
                "micro_batch": number,
                "samples": [{"row": row, "psmiles": spelling[row]} for row in sorted(rows)],
            }
            for rank, part in enumerate(parts)
            for number, rows in enumerate(part)
        ]
        found = {
            "step": step,
            "loss": str(report.loss),
            "grad_norm": str(report.grad_norm),
            "micro_batches": micro_batches,
        }
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(found, indent=1) + "\n")

    ranks.share(write)
    if in_a_row >= _MOST_IN_A_ROW:
        ranks.fail(
            MipsError(
                f"no finite gradient at {in_a_row} steps in a row, up to step {step}; their "
                f"polymers are in {path.parent}; begin another run_dir with a lower optimizer.lr "
                "or precision=fp32"
            )
        )
    return (
        f"step {step}: loss {report.loss:.4g} or gradient norm {report.grad_norm:.4g} is not "
        f"finite; no rank applied it, its polymers are in {path}"
    )
