"""Entry point of fine-tuning: a study of properties x folds x seeds on Ray Tune.

Run it by path, ``python mips_dist/finetune.py run_dir=DIR ...``; ``--help`` lists the keys. The
ledger in the run folder decides what is done; Ray's own state is thrown away.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from mips_dist.config import run, save_resolved
from mips_dist.data.working_copy import WorkingCopy
from mips_dist.errors import MipsError
from mips_dist.model.bundle import METRICS
from mips_dist.train.ablation import (
    ablation_rows,
    ablation_table,
    describe_size,
    read_ablation,
    run_configs,
    write_ablation,
)
from mips_dist.train.baselines import check_installed
from mips_dist.train.board import Board
from mips_dist.train.cells import (
    best_model,
    ensemble_results,
    has_model,
    held_out_predictions,
    model_dir,
    study_cells,
    trainings,
    write_curve,
)
from mips_dist.train.environment import record_environment
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.results import (
    ENSEMBLE,
    GP_TREES,
    NETWORK,
    Cell,
    FoldResult,
    Ledger,
)
from mips_dist.train.study import (
    LEDGER_FILE,
    REJECTS_FILE,
    STAYS,
    UNPUBLISHED,
    Study,
    load_study,
    open_run_dir,
    read_sets,
)
from mips_dist.train.sweep import search
from mips_dist.train.tables import RESULTS_FILE, Summary, render, summarize, write_csv, write_json
from mips_dist.train.trials import Job, RayTrials


def main(config: FinetuneConfig) -> int:
    """Run what is missing of a study, then write its tables and models."""
    console = Console()
    with WorkingCopy(config.run_dir, stays=STAYS) as copy:
        here = replace(config, run_dir=str(copy.path))
        if config.ablation:
            _ablate(here, copy, console)
        else:
            _study(here, copy, console)
        copy.finish(UNPUBLISHED)
    return 0


def _study(config: FinetuneConfig, copy: WorkingCopy, console: Console) -> list[Summary]:
    """Run or continue one study, or the sweep in its place; return its summaries."""
    check_installed(config.baselines)
    sets, rejects = read_sets(config)
    run_dir = Path(config.run_dir)
    open_run_dir(run_dir)
    ledger = Ledger(run_dir / LEDGER_FILE)
    try:
        study = load_study(config, sets, rejects)
        save_resolved(replace(config, run_dir=copy.named(run_dir)), run_dir / "config.yaml")
        record_environment(run_dir)
        copy.push()
        copy.settle()  # a store that cannot be written to is found out now
        if config.search is not None:
            search(study, copy, console)
            return []
        return _run(study, copy, ledger, console)
    finally:
        ledger.close()


def _ablate(config: FinetuneConfig, copy: WorkingCopy, console: Console) -> None:
    """Run the studies of an ablation one after the other, then lay them side by side."""
    plan = read_ablation()
    folder = Path(config.run_dir)
    configs = run_configs(config, plan)
    found: dict[str, list[Summary]] = {}
    failures: dict[str, MipsError] = {}
    for name, run_config in configs.items():
        console.print(f"run {name} ({len(found) + len(failures) + 1} of {len(configs)})")
        Path(run_config.run_dir).mkdir(parents=True, exist_ok=True)
        try:
            found[name] = _study(run_config, copy, console)
        except MipsError as error:
            failures[name] = error
        rows = ablation_rows(plan, found, config.protocol)
        about = describe_size(config)
        plots = write_ablation(rows, plan, about, folder)
    console.print(ablation_table(rows, plan, about))
    named = ", ".join(map(copy.named, plots))
    console.print(f"numbers: {copy.named(folder / 'ablation.csv')}; plots: {named}")
    if failures:
        name, first = next(iter(failures.items()))
        raise MipsError(f"{len(failures)} of the runs failed, first {name}: {first}")


def _run(study: Study, copy: WorkingCopy, ledger: Ledger, console: Console) -> list[Summary]:
    config = study.config
    run_dir = Path(config.run_dir)
    cells = study_cells(config)
    largest_first = sorted(trainings(config), key=lambda group: -_work(study, group))
    todo = [group for group in largest_first if any(cell not in ledger.results for cell in group)]
    num_missing = sum(cell not in ledger.results for cell in cells)
    console.print(
        f"{len(cells)} cells: {len(study.properties)} properties x {config.num_folds} folds x "
        f"({len(config.seeds)} seeds + {len(config.baselines)} baselines); "
        f"{len(cells) - num_missing} finished before; protocol {config.protocol}"
    )
    failures: dict[str, str] = {}

    def keep(result: FoldResult) -> None:
        write_curve(result, run_dir / "tensorboard")
        ledger.append(result)
        copy.push()

    board = Board(cells, (ledger.results[cell] for cell in cells if cell in ledger.results))
    with RayTrials(config, copy, console) as trials:
        failures |= trials.run(
            study, [{"cells": [list(c) for c in group]} for group in todo], board, keep
        )
        summaries = _summaries(study, ledger)
        console.print(render(summaries, study.num_polymers()))
        # What a network makes of permuted labels is good for nothing.
        if config.save_model and config.permute_labels is None:
            jobs = _model_jobs(study, run_dir, ledger, summaries)
            board.expect_models(sum(len(job["summaries"]) for job in jobs))
            failures |= trials.run(study, jobs, board, lambda _: None)
    _report(study, copy, ledger, summaries, failures, console)
    return summaries


def _work(study: Study, cells: list[Cell]) -> float:
    """Estimate a training's work: trees cost about as much as the network, a mean nothing."""
    return float(sum(len(study.rows[c.property].row) for c in cells if c.model != "mean"))


def _summaries(study: Study, ledger: Ledger) -> list[Summary]:
    # Both protocols stand side by side where the ledger has them, never the seeds of another
    # command in one mean with those of this one.
    config = study.config
    results = [r for r in _shown(study, ledger) if r.model != NETWORK or r.seed in config.seeds]
    return summarize(results, study.properties, config.num_folds, len(config.seeds))


def _shown(study: Study, ledger: Ledger) -> list[FoldResult]:
    """Return all results as tables have them: the ensemble too, permuted labels told of."""
    seed = study.config.permute_labels
    note = "" if seed is None else f", labels permuted (seed {seed})"
    found = [*ledger.results.values(), *ensemble_results(study, ledger.results)]
    return [replace(r, protocol=r.protocol + note) for r in found]


def _model_jobs(study: Study, run_dir: Path, ledger: Ledger, summaries: list[Summary]) -> list[Job]:
    """Return the final trainings that are still to be done, of properties that have all folds."""
    best = best_model(study.config)
    members = [NETWORK, GP_TREES] if best == ENSEMBLE else [NETWORK]
    jobs: list[Job] = []
    names = [prop.name for prop in study.properties]
    for group in [names] if study.config.joint else [[name] for name in names]:
        own = [c for c in study_cells(study.config) if c.property in group and c.model in members]
        is_missing = any(cell not in ledger.results for cell in own)
        if is_missing or all(has_model(study.config, run_dir, name) for name in group):
            continue
        rows = [(name, best, study.config.protocol) for name in group]
        found = {(s.property, s.model, s.protocol): asdict(s) for s in summaries}
        networks = [[c for c in own if c[:2] == (NETWORK, name)] for name in group]
        epochs = [[ledger.results[cell].epoch for cell in cells] for cells in networks]
        jobs.append(
            {
                "summaries": [found[row] for row in rows],
                "epochs": epochs,
                "held_out": [held_out_predictions(study, ledger.results, name) for name in group],
            }
        )
    return jobs


def _report(
    study: Study,
    copy: WorkingCopy,
    ledger: Ledger,
    summaries: list[Summary],
    failures: dict[str, str],
    console: Console,
) -> None:
    run_dir = Path(study.config.run_dir)
    write_csv(_shown(study, ledger), run_dir / RESULTS_FILE)
    about = {
        "num_polymers": study.num_polymers(),
        "permute_labels": study.config.permute_labels,
        "failures": failures,
    }
    write_json(summaries, about, run_dir / "results.json")
    copy.push()
    num_rejects = len((run_dir / REJECTS_FILE).read_text(encoding="utf-8").splitlines()) - 1
    if num_rejects:
        rejected = copy.named(run_dir / REJECTS_FILE)
        console.print(f"{num_rejects} rows could not be used: see {rejected}")
    console.print(f"scores of every fold: {copy.named(run_dir / RESULTS_FILE)}")
    console.print(f"curves: tensorboard --logdir {run_dir / 'tensorboard'}")
    console.print(f"all of it on one page: mips report {run_dir}")
    for prop in study.properties:
        if has_model(study.config, run_dir, prop.name):
            folder = model_dir(run_dir, prop.name)
            metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
            covered = f"90 % intervals hold {100 * metrics['coverage_90']:.1f} % of held-out rows"
            console.print(f"model of {prop.name}: {copy.named(folder)} ({covered})")
    if failures:
        name, reason = next(iter(failures.items()))
        raise MipsError(
            f"{len(failures)} of the cells failed, first {name} ({reason}); "
            "the same command does them again"
        )


if __name__ == "__main__":
    sys.exit(run(main, FinetuneConfig, "finetune"))
