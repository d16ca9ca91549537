"""Entry point of fine-tuning: a study of properties x folds x seeds on Ray Tune.

Run it by path, ``python mips_dist/finetune.py run_dir=DIR ...``; ``--help`` lists the keys. The
ledger in the run folder decides what is done; Ray's own state is thrown away.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from mips_dist.config import run, save_resolved
from mips_dist.errors import MipsError
from mips_dist.train.cells import (
    has_model,
    model_dir,
    run_cell,
    study_cells,
    train_model,
    write_curve,
)
from mips_dist.train.results import NETWORK, Cell, FoldResult, Ledger
from mips_dist.train.study import (
    LEDGER_FILE,
    REJECTS_FILE,
    FinetuneConfig,
    Study,
    load_study,
    open_run_dir,
    read_sets,
)
from mips_dist.train.tables import Summary, render, summarize, write_csv, write_json

RAY_ENVIRONMENT = {
    # Made for desktops; it is what binds a local Ray to 127.0.0.1. An address given to ray.init is
    # replaced by one that other machines can reach.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the driver; the ledger has what is finished
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
RAY_LINK = ".ray"
OBJECT_STORE_BYTES = 256 * 1024 * 1024
# A trial whose process dies starts again this often; an error that it reports is final.
MAX_DEATHS = 3
SECONDS_BETWEEN_REPORTS = 5.0

Job = dict[str, Any]
Keep = Callable[[FoldResult], None]


def main(config: FinetuneConfig) -> int:
    """Run what is missing of a study, then write its tables and models."""
    console = Console()
    sets, rejects = read_sets(config)
    run_dir = Path(config.run_dir)
    open_run_dir(run_dir)
    ledger = Ledger(run_dir / LEDGER_FILE)
    try:
        study = load_study(config, sets, rejects)
        save_resolved(config, run_dir / "config.yaml")
        return _run(study, run_dir, ledger, console)
    finally:
        ledger.close()


def _run(study: Study, run_dir: Path, ledger: Ledger, console: Console) -> int:
    config = study.config
    cells = study_cells(config)
    largest_first = sorted(cells, key=lambda cell: -_work(study, cell))
    todo = [cell for cell in largest_first if cell not in ledger.results]
    console.print(
        f"{len(cells)} cells: {len(study.properties)} properties x {config.num_folds} folds x "
        f"({len(config.seeds)} seeds + {len(config.baselines)} baselines); "
        f"{len(cells) - len(todo)} finished before; protocol {config.protocol}"
    )
    failures: dict[str, str] = {}

    def keep(result: FoldResult) -> None:
        write_curve(result, run_dir / "tensorboard")
        ledger.append(result)

    with RayTrials(study, run_dir, console) as trials:
        failures |= trials.run([{"cell": list(cell)} for cell in todo], "cells", keep)
        summaries = _summaries(study, ledger)
        if config.save_model:
            jobs = _model_jobs(study, run_dir, ledger, summaries)
            failures |= trials.run(jobs, "models", lambda _: None)
    return _report(study, run_dir, ledger, summaries, failures, console)


def _work(study: Study, cell: Cell) -> float:
    """Estimate the work of a cell: trees cost about as much as the network, a mean nothing."""
    return 0.0 if cell.model == "mean" else float(len(study.rows[cell.property].row))


def _summaries(study: Study, ledger: Ledger) -> list[Summary]:
    # Both protocols stand side by side where the ledger has them, never the seeds of another
    # command in one mean with those of this one.
    config = study.config
    results = [r for r in ledger.results.values() if r.model != NETWORK or r.seed in config.seeds]
    return summarize(results, study.properties, config.num_folds, len(config.seeds))


def _model_jobs(study: Study, run_dir: Path, ledger: Ledger, summaries: list[Summary]) -> list[Job]:
    """Return the final trainings that are still to be done, of properties that have all folds."""
    jobs: list[Job] = []
    for prop in study.properties:
        cells = [c for c in study_cells(study.config) if c[:2] == (NETWORK, prop.name)]
        is_missing = any(cell not in ledger.results for cell in cells)
        if is_missing or has_model(study.config, run_dir, prop.name):
            continue
        row = (prop.name, NETWORK, study.config.protocol)
        summary = next(s for s in summaries if (s.property, s.model, s.protocol) == row)
        epochs = [ledger.results[cell].epoch for cell in cells]
        jobs.append({"model": prop.name, "summary": asdict(summary), "epochs": epochs})
    return jobs


def _report(
    study: Study,
    run_dir: Path,
    ledger: Ledger,
    summaries: list[Summary],
    failures: dict[str, str],
    console: Console,
) -> int:
    write_csv(ledger.results.values(), run_dir / "results.csv")
    about = {"num_polymers": study.num_polymers(), "failures": failures}
    write_json(summaries, about, run_dir / "results.json")
    console.print(render(summaries, study.num_polymers()))
    num_rejects = len((run_dir / REJECTS_FILE).read_text(encoding="utf-8").splitlines()) - 1
    if num_rejects:
        console.print(f"{num_rejects} rows could not be used: see {run_dir / REJECTS_FILE}")
    console.print(f"scores of every fold: {run_dir / 'results.csv'}")
    console.print(f"curves: tensorboard --logdir {run_dir / 'tensorboard'}")
    for prop in study.properties:
        if has_model(study.config, run_dir, prop.name):
            console.print(f"model of {prop.name}: {model_dir(run_dir, prop.name)}")
    if failures:
        name, reason = next(iter(failures.items()))
        raise MipsError(
            f"{len(failures)} of the cells failed, first {name} ({reason}); "
            "the same command does them again"
        )
    return 0


class RayTrials:
    """Jobs as Ray Tune trials on this machine, one core each; Ray starts with the first job."""

    def __init__(self, study: Study, run_dir: Path, console: Console) -> None:
        self._study, self._run_dir, self._console = study, run_dir, console
        self._temporary: str | None = None

    def __enter__(self) -> "RayTrials":
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop Ray and remove what it wrote."""
        if self._temporary is None:
            return
        import ray

        ray.shutdown()
        shutil.rmtree(self._temporary, ignore_errors=True)
        (self._run_dir / RAY_LINK).unlink()

    def run(self, jobs: list[Job], title: str, keep: Keep) -> dict[str, str]:
        """Run jobs; hand each cell's result to `keep` as it comes; return name -> failure."""
        if not jobs:
            return {}
        self._start()
        from ray import tune

        assert self._temporary is not None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            watch = _watch(jobs, title, keep, progress)
            trainable = tune.with_parameters(
                _trial, study=self._study, run_dir=str(self._run_dir.resolve())
            )
            share = {"cpu": 1.0, "gpu": self._study.config.gpus_per_trial}
            tuner = tune.Tuner(
                tune.with_resources(trainable, share),
                param_space={"job": tune.grid_search(jobs)},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(
                    name=title,
                    storage_path=self._temporary + "/tune",
                    failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                    callbacks=[watch],
                    verbose=0,
                ),
            )
            grid = tuner.fit()
        failures = dict(watch.failures)
        for outcome in (grid[index] for index in range(len(grid))):
            if outcome.error is not None:
                job = (outcome.config or {})["job"]
                failures[_name(job)] = str(outcome.error).strip().splitlines()[-1]
        return failures

    def _start(self) -> None:
        if self._temporary is not None:
            return
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray

        # Not below run_dir: the path of a Unix socket ends at 107 characters. The link lets the
        # next driver remove what a killed one left.
        link = self._run_dir / RAY_LINK
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()
        self._temporary = tempfile.mkdtemp(prefix="mips-")
        link.symlink_to(self._temporary)
        ray.init(
            address="local",  # never a cluster of someone else on this machine
            num_cpus=self._study.config.num_workers or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=self._temporary,
        )


def _name(job: Job) -> str:
    return f"model of {job['model']}" if "model" in job else str(Cell(*job["cell"]))


def _watch(jobs: list[Job], title: str, keep: Keep, progress: Progress) -> Any:
    """Return a Tune callback that keeps results and moves the progress bar.

    Tune pickles the class, so its methods get what cannot be pickled through the instance.
    """
    from ray.tune import Callback

    class Watch(Callback):
        def __init__(self, bar: TaskID, progress: Progress, keep: Keep) -> None:
            self.bar, self.progress, self.keep = bar, progress, keep
            self.failures: dict[str, str] = {}

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles callbacks for a restore, which nothing here uses

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            name = _name(trial.config["job"])
            if "epoch" in result:
                description = f"{title}: {name}, epoch {result['epoch']}"
                self.progress.update(self.bar, description=description)
                return
            line = f"{name}: done"
            if "failure" in result:
                self.failures[name] = result["failure"]
                line = f"{name} failed: {result['failure']}"
            elif "result" in result:
                done = FoldResult(**json.loads(result["result"]))
                self.keep(done)
                unit = f" {done.unit}" if done.unit not in ("", "1") else ""
                line = f"{name}: R2 {done.r2:.3f}, RMSE {done.rmse:.3g}{unit}"
            self.progress.console.print(line)
            self.progress.advance(self.bar)

    return Watch(progress.add_task(title, total=len(jobs)), progress, keep)


def _trial(params: dict[str, Any], study: Study, run_dir: str) -> None:
    """Run one job in a process of its own and report its result or its failure as a value."""
    from ray import tune

    job = params["job"]
    reported = time.monotonic()

    def on_epoch(epoch: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            tune.report({"epoch": epoch})

    try:
        if "model" in job:
            summary = Summary(**job["summary"])
            train_model(study, Path(run_dir), job["model"], summary, job["epochs"])
            tune.report({"model": job["model"]})
            return
        result = run_cell(study, Cell(*job["cell"]), on_epoch)
    except MipsError as error:
        tune.report({"failure": str(error)})
        return
    tune.report({"result": json.dumps(asdict(result))})


if __name__ == "__main__":
    sys.exit(run(main, FinetuneConfig, "finetune"))
