"""Pieces of a study as Ray Tune trials, each in a process of its own.

They run on this machine, or on the cluster that RAY_ADDRESS names, as preprocessing does.

The one module of training that imports Ray. The ledger of the study decides what is done; Ray's own
state is thrown away.
"""

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live

from mips_dist.data.generations import Entry
from mips_dist.data.working_copy import WorkingCopy, hand_in
from mips_dist.errors import MipsError
from mips_dist.own_ray import private_environment
from mips_dist.train.board import Board
from mips_dist.train.cells import run_cells, train_models
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.results import Cell, FoldResult
from mips_dist.train.study import Study
from mips_dist.train.tables import Summary

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the driver; the ledger has what is finished
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
RAY_LINK = ".ray"
SHARED_FOLDER = ".tune"  # of run_dir, where a cluster keeps its state of the study
OBJECT_STORE_BYTES = 256 * 1024 * 1024
# A trial whose process dies starts again this often; an error that it reports is final.
MAX_DEATHS = 3
# Ray gives its own processes 30 s, which is short on a crowded machine.
NUM_STARTS = 4
SECONDS_BETWEEN_REPORTS = 5.0
SECONDS_TO_ANSWER = 120.0  # of a node of a cluster
REFRESHES_PER_SECOND = 2

Job = dict[str, Any]
Keep = Callable[[FoldResult], None]
KeepFiles = Callable[[dict[str, Entry]], None]


class RayTrials:
    """A pool of trial processes; Ray starts with the first job.

    Parameters
    ----------
    config
        Its num_workers, cpus_per_trial and gpus_per_trial are the shares.
    copy
        What config.run_dir is in, or equal to. run_dir holds a link to what Ray writes, which the
        next driver removes if this one is killed.
    """

    def __init__(self, config: FinetuneConfig, copy: WorkingCopy, console: Console) -> None:
        self._config, self._copy, self._console = config, copy, console
        self._run_dir = Path(config.run_dir)
        # Other hosts do not see a copy of this one: they bring their models to the URL.
        self._url = copy.where if copy.is_remote and os.environ.get("RAY_ADDRESS") else ""
        self._temporary: str | None = None

    def __enter__(self) -> "RayTrials":
        """Return the pool; Ray may be imported from here on."""
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not os.environ.get("RAY_ADDRESS"):
            os.environ.update(private_environment())
        return self

    def __exit__(self, *_: object) -> None:
        """Stop Ray and remove what it wrote."""
        if self._temporary is None:
            return
        import ray

        ray.shutdown()
        shutil.rmtree(self._temporary, ignore_errors=True)
        (self._run_dir / RAY_LINK).unlink()

    def run(self, study: Study, jobs: list[Job], board: Board, keep: Keep) -> dict[str, str]:
        """Run jobs; hand each cell's result to `keep` as it comes; return name -> failure."""
        if not jobs:
            return {}
        shared = {"study": study, "run_dir": str(self._run_dir.resolve()), "url": self._url}
        from ray import tune

        lively = self._console.is_terminal
        watch = _watch(board, keep, self._keep_files, self._console)
        live = Live(board, console=self._console, refresh_per_second=REFRESHES_PER_SECOND)
        with live if lively else nullcontext():
            self.fit(_trial, shared, {"job": tune.grid_search(jobs)}, [watch])
        return watch.failures

    def _keep_files(self, files: dict[str, Entry]) -> None:
        """Fetch models that a trial left at the URL."""
        if files:
            self._copy.take(self._run_dir, files)
        self._copy.push()

    def fit(
        self,
        function: Callable[..., None],
        shared: dict[str, Any],
        space: dict[str, Any] | None,
        callbacks: list[Any],
        **settings: Any,
    ) -> None:
        """Run a function as trials, each with its share of the machine.

        Parameters
        ----------
        function
            Called with a point of `space` and, by name, with all of `shared`.
        settings
            Further arguments of `ray.tune.TuneConfig`.
        """
        self._start()
        from ray import tune

        assert self._temporary is not None
        share = {"cpu": self._config.cpus_per_trial, "gpu": self._config.gpus_per_trial}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(function, **shared), share),
            param_space=space,
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=self._config.num_workers, **settings
            ),
            run_config=tune.RunConfig(
                storage_path=self._temporary + "/tune",
                failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                callbacks=callbacks,
                verbose=0,
            ),
        )
        tuner.fit()

    def _start(self) -> None:
        if self._temporary is not None:
            return
        address = os.environ.get("RAY_ADDRESS", "")
        import ray

        # Tune logs the traceback of every dead process; what follows from it is said in a line.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        # Not below run_dir: the path of a Unix socket ends at 107 characters. The link lets the
        # next driver remove what a killed one left.
        link = self._run_dir / RAY_LINK
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()
        if address:
            folder = str((self._run_dir / SHARED_FOLDER).resolve())
            Path(folder).mkdir(exist_ok=True)
        else:
            folder = tempfile.mkdtemp(prefix="mips-")
        self._temporary = folder
        link.symlink_to(folder)
        if address:
            self._join_cluster(address, folder)
        else:
            self._start_here(folder)
        shares = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for key, share in (
            ("CPU", self._config.cpus_per_trial),
            ("GPU", self._config.gpus_per_trial),
        ):
            found = max((resources.get(key, 0.0) for resources in shares), default=0.0)
            if share > found:
                raise MipsError(
                    f"{key.lower()}s_per_trial={share:g}, but Ray sees {found:g} {key}s "
                    f"{'on its largest node' if address else 'here'}; give a share that fits"
                    + (", or 0" if key == "GPU" else "")
                )

    def _start_here(self, folder: str) -> None:
        import ray

        num_cpus = self._num_cpus()
        for attempt in range(1, NUM_STARTS + 1):
            try:
                ray.init(
                    address="local",  # never a cluster of someone else on this machine
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                )
                return
            except Exception as error:  # Ray has no class for a start that takes too long
                ray.shutdown()
                if attempt == NUM_STARTS:
                    raise MipsError(
                        f"Ray did not start ({str(error).splitlines()[0]}); is the machine too "
                        "busy? The same command continues"
                    ) from error

    def _join_cluster(self, address: str, folder: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises bare ones
            raise MipsError(
                f"no Ray at RAY_ADDRESS={address} ({str(error).strip().splitlines()[0]}); look at "
                "the address, at the token (RAY_AUTH_MODE, ~/.ray/auth_token), and whether "
                "versions there are those here"
            ) from error
        if not self._config.save_model or self._url:
            return  # results come through Ray
        sees = ray.remote(num_cpus=0, max_retries=0)(_is_folder)
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            found = sees.options(scheduling_strategy=there).remote(folder)
            try:
                is_shared = ray.get(found, timeout=SECONDS_TO_ANSWER)
            except ray.exceptions.RayError:  # lost meanwhile; trials go elsewhere
                continue
            if not is_shared:
                raise MipsError(
                    f"node {node['NodeManagerAddress']} does not see run_dir={self._run_dir}, "
                    "where trials leave models; put it on a file system that all nodes share, give "
                    "one at s3://, or save_model=false"
                )

    def _num_cpus(self) -> int:
        """Return the CPUs to share out: those of the machine, or what num_workers trials want."""
        share, workers = self._config.cpus_per_trial, self._config.num_workers
        num_cpus = math.ceil(share * workers) if workers else len(os.sched_getaffinity(0))
        if share > num_cpus:
            raise MipsError(f"cpus_per_trial={share:g} is more than the {num_cpus} cores here")
        return num_cpus


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)


def _name(job: Job) -> str:
    if "cells" not in job:
        return f"model of {', '.join(summary['property'] for summary in job['summaries'])}"
    cells = [Cell(*cell) for cell in job["cells"]]
    if len(cells) == 1:
        return str(cells[0])
    return str(cells[0]._replace(property=", ".join(cell.property for cell in cells)))


def _watch(board: Board, keep: Keep, keep_files: KeepFiles, console: Console) -> Any:
    """Return a Tune callback that keeps results and moves the board, or prints plain lines.

    Tune pickles the class, so its methods get what cannot be pickled through the instance.
    """
    from ray.tune import Callback

    class Watch(Callback):
        def __init__(
            self, board: Board, keep: Keep, keep_files: KeepFiles, console: Console
        ) -> None:
            self.board, self.keep, self.console = board, keep, console
            self.keep_files = keep_files
            self.failures: dict[str, str] = {}

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles callbacks for a restore, which nothing here uses

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            job = trial.config["job"]
            if "epoch" in result:
                self.board.show_epoch(job, result["epoch"])
            elif "failure" in result:
                self.fail(job, result["failure"])
            elif "results" in result:
                for values in json.loads(result["results"]):
                    done = FoldResult(**values)
                    self.keep(done)
                    self.board.show_result(done)
                    unit = f" {done.unit}" if done.unit not in ("", "1") else ""
                    self.say(f"{done.cell()}: R2 {done.r2:.3f}, RMSE {done.rmse:.3g}{unit}")
            elif "models" in result:
                files = json.loads(result["files"])
                self.keep_files({name: Entry(**entry) for name, entry in files.items()})
                self.board.show_models(result["models"])
                self.say(f"{_name(job)}: done")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self.fail(trial.config["job"], _last_line(trial))

        def fail(self, job: Job, reason: str) -> None:
            self.failures[_name(job)] = reason
            self.board.show_failure(job)
            self.console.print(f"{_name(job)} failed: {reason}")

        def say(self, line: str) -> None:
            if not self.console.is_terminal:  # there the board shows it
                self.console.print(line)

    return Watch(board, keep, keep_files, console)


def _last_line(trial: Any) -> str:
    return str(trial.get_error() or "its process died").strip().splitlines()[-1]


def _trial(params: dict[str, Any], study: Study, run_dir: str, url: str) -> None:
    """Run one job in a process of its own and report its result or its failure as a value."""
    from ray import tune

    job = params["job"]
    reported = time.monotonic()

    def on_epoch(epoch: int) -> None:
        nonlocal reported
        if epoch == 1 or time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            tune.report({"epoch": epoch})

    def work() -> dict[str, Any]:
        if "cells" not in job:
            summaries = [Summary(**summary) for summary in job["summaries"]]
            rest = summaries, job["epochs"], job["held_out"]
            files: dict[str, Entry] = {}
            if url:
                with tempfile.TemporaryDirectory() as folder:
                    train_models(study, Path(folder), *rest)
                    files = hand_in(url, Path(folder))
            else:
                train_models(study, Path(run_dir), *rest)
            described = {name: asdict(entry) for name, entry in files.items()}
            return {"models": len(summaries), "files": json.dumps(described)}
        results = run_cells(study, [Cell(*cell) for cell in job["cells"]], on_epoch)
        for result in results:
            if not math.isfinite(result.rmse):
                raise MipsError(
                    f"{result.cell()}: a prediction is not finite; is a label out of all range?"
                )
        return {"results": json.dumps([asdict(result) for result in results])}

    tune.report(result_or_failure(work))


def result_or_failure(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `work` returns, or the failure that a user can do something about.

    A failure that would come again is final; of anything else the process of the trial dies, and
    the trial starts again.
    """
    try:
        return work()
    except MipsError as error:
        return {"failure": str(error)}
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own for GPUs alone.
        is_short = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_short and "can't allocate memory" not in str(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # other trials have shares of this GPU
    return {"failure": "out of memory; lower batch_size, or num_workers for fewer trials at a time"}
