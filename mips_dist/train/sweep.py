"""Search for hyperparameters on the inner splits of the training folds, on Ray Tune.

The labels of a test fold are replaced by NaN before a training sees them, so nothing can be scored
on it. Every fold of every point is written down; the same command tells Tune what is known again,
without training, and goes on from there.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from mips_dist.config import replaced
from mips_dist.data.files import write_atomically
from mips_dist.data.working_copy import WorkingCopy
from mips_dist.errors import MipsError
from mips_dist.train.finetune_config import slug
from mips_dist.train.finetuning import finetune_fold
from mips_dist.train.search_space import (
    LEDGER,
    Range,
    SearchLedger,
    Tried,
    Values,
    point_key,
    read_space,
    rounded,
    sample,
)
from mips_dist.train.study import Study
from mips_dist.train.trials import RayTrials, result_or_failure

# What Tune is told of a point whose training fails: worse than any that learns something.
FAILURE_SCORE = -1.0
ASHA_REDUCTION = 2  # of the points that reach 1, 2, 4, ... folds, this part goes on


def search(study: Study, copy: WorkingCopy, console: Console) -> None:
    """Search for every property, then write search.csv and best/NAME.yaml."""
    config = study.config
    run_dir = Path(config.run_dir)
    space = read_space(config.given)
    ledger = SearchLedger(run_dir / LEDGER)
    names = list(study.rows)
    with RayTrials(config, copy, console) as trials:
        for name in names:
            _search_property(study, name, space, ledger, trials, copy, console)
            ledger.write_csv(run_dir / "search.csv", names, config.num_folds)
    table = Table(
        caption=f"search={config.search}: mean R2 on the inner splits of {config.num_folds} "
        "training folds; the test folds were not scored",
        caption_justify="left",
    )
    for header in ("property", "points", "best R2", "values"):
        table.add_column(header, overflow="fold")
    for name in names:
        best = ledger.best(name, config.num_folds)
        if best is None:
            raise MipsError(
                f"{name}: no point has all folds ({ledger.of(name)[0].failure or 'interrupted'}); "
                "raise search_trials"
            )
        _write_best(best, run_dir / "best" / f"{slug(name)}.yaml", config.num_folds)
        chosen = ", ".join(f"{key}={value}" for key, value in best.values.items())
        table.add_row(name, str(len(ledger.of(name))), f"{best.mean():.3f}", chosen)
    console.print(table)
    points, best_of_each = copy.named(run_dir / "search.csv"), copy.named(run_dir / "best")
    console.print(f"all points: {points}; the best of each: {best_of_each}")


def _write_best(best: Tried, path: Path, num_folds: int) -> None:
    path.parent.mkdir(exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.create({"training": dict(best.values)}))
    comment = f"# inner R2 {best.mean():.4f}, {num_folds} folds; for configs/property/NAME.yaml\n"
    write_atomically(path, comment + text)


def _search_property(
    study: Study,
    name: str,
    space: dict[str, Range],
    ledger: SearchLedger,
    trials: RayTrials,
    copy: WorkingCopy,
    console: Console,
) -> None:
    """Run the points of one property that are still to be tried."""
    config = study.config
    known = [tried.values for tried in ledger.of(name) if set(tried.values) == set(space)]
    if config.search == "asha":
        rng = np.random.default_rng(config.search_seed)
        points = [sample(space, rng) for _ in range(config.search_trials)]
        settings, param_space = _asha(points, config.num_folds)
    else:
        # Begun again, the sampler would draw the known points a second time.
        seed = config.search_seed + len(known)
        settings, param_space = _optuna(space, known, seed, config.search_trials)
    shared = {
        "study": study,
        "name": name,
        "known": {point_key(t.values): (t.scores, t.failure) for t in ledger.of(name)},
    }
    console.print(f"{name}: {len(known)} points were begun before")
    trials.fit(try_point, shared, param_space, [_watch(ledger, copy, console)], **settings)


def _asha(points: list[Values], num_folds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random points; half of those that reach 1, 2, 4, ... folds go on."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        metric="score",
        mode="max",
        max_t=num_folds,
        grace_period=1,
        reduction_factor=ASHA_REDUCTION,
    )
    return {"scheduler": scheduler}, {"values": tune.grid_search(points)}


def _optuna(
    space: dict[str, Range], known: list[Values], seed: int, num_trials: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Points of Optuna's sampler, all folds each; it is given the known ones first."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    try:
        sampler = OptunaSearch(
            metric="score", mode="max", points_to_evaluate=known or None, seed=seed
        )
    except (ImportError, AssertionError) as error:
        raise MipsError("search=optuna needs a package: pip install 'optuna>=4'") from error
    domains: dict[str, Any] = {}
    for key, where in space.items():
        if where.choices:
            domains[key] = tune.choice(where.choices)
        else:
            domains[key] = (tune.loguniform if where.log else tune.uniform)(where.low, where.high)
    return {"search_alg": sampler, "num_samples": num_trials}, domains


def try_point(
    params: Values, study: Study, name: str, known: dict[str, tuple[list[float], str]]
) -> None:
    """Run the folds of one point one after the other and report the mean score after each."""
    from ray import tune

    values = rounded(params.get("values", params))
    scores, failure = known.get(point_key(values), ([], ""))
    line = {"property": name, "values": values}
    for fold in range(study.config.num_folds):
        score = math.nan
        if fold < len(scores):
            score = scores[fold]
        elif not failure:
            outcome = result_or_failure(partial(_score, study, name, values, fold))
            score, failure = outcome.get("r2", math.nan), outcome.get("failure", "")
        if not failure and not math.isfinite(score):
            failure = "the inner split has no R2"
        if failure and fold >= len(scores):
            told = FAILURE_SCORE
            tune.report({"line": line | {"fold": fold, "failure": failure}, "score": told})
            return
        scores = [*scores[:fold], score, *scores[fold + 1 :]]
        told = float(np.mean(scores[: fold + 1]))
        found = line | {"fold": fold, "score": score, "failure": ""}
        tune.report({"line": found, "score": told})


def _score(study: Study, name: str, values: Values, fold: int) -> dict[str, Any]:
    return {"r2": inner_score(study, name, values, fold)}


def inner_score(study: Study, name: str, values: Values, fold: int) -> float:
    """Train with some values on the training folds; return R2 on their inner split.

    The labels of the test fold are not there to be scored.
    """
    config = replaced(study.tuned([name]).config, values)
    rows, folds = study.rows[name], study.folds[name]
    hidden = replace(rows, value=np.where(folds == fold, np.nan, rows.value))
    result = finetune_fold(config, study.block, hidden, folds, fold, config.seeds[0])
    assert math.isnan(result.r2), "the test fold was scored"
    return result.curve[result.epoch - 1]["watched_r2"]


def _watch(ledger: SearchLedger, copy: WorkingCopy, console: Console) -> Any:
    """Return a Tune callback that writes down every fold."""
    from ray.tune import Callback

    class Watch(Callback):
        def __init__(self, ledger: SearchLedger, copy: WorkingCopy, console: Console) -> None:
            self.ledger, self.copy, self.console = ledger, copy, console

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles callbacks for a restore, which nothing here uses

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            line = result["line"]
            if self.ledger.append(line):
                self.copy.push()
                said = line["failure"] or f"inner R2 {line['score']:.3f}"
                values = ", ".join(f"{k}={v}" for k, v in line["values"].items())
                self.console.print(f"{line['property']} fold {line['fold']}: {said} ({values})")

    return Watch(ledger, copy, console)
