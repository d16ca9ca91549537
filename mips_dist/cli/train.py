"""Verbs that train a model, or look at a training."""

from pathlib import Path
from typing import Annotated

import typer

from mips_dist.cli.app import Debug, Input, app
from mips_dist.errors import guarded
from mips_dist.shell import TRAIN


@app.command(rich_help_panel=TRAIN)
def finetune(
    input: Input,
    targets: Annotated[
        list[str], typer.Option("--target", help="column of labels; repeatable: a model for each")
    ],
    units: Annotated[
        list[str] | None, typer.Option("--unit", help="unit of a target, in the same order")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="folder to write [default: runs/FILE-TARGET]"),
    ] = None,
    psmiles_column: Annotated[
        str | None,
        typer.Option("--psmiles-column", help="column of P-SMILES [default: psmiles or smiles]"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train a model of your own property; say first how good it is.

    Cross-validates five folds of polymers under the strict protocol, beside the mean and two tree
    ensembles; then trains on all rows and writes a model for mips predict -m. Needs a csv with 20
    labelled polymers or more; rows without a label are left out. Interrupt it when you like: the
    same command continues. python mips_dist/finetune.py has every setting.

    Examples
    --------
    mips finetune my.csv --target tg --unit K
    mips finetune my.csv --target tg --unit K --target density --unit g/cm3 -o runs/mine
    mips finetune my.csv --target tg --psmiles-column polymer
    """

    def work() -> None:
        from mips_dist.finetune import main as run_study
        from mips_dist.train.own_data import finetune_file

        finetune_file(input, targets, units or [], output, psmiles_column, run_study)

    raise typer.Exit(guarded(work, debug))


@app.command(rich_help_panel=TRAIN)
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="folder of a run")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="page to write [RUN_DIR/report.html]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="where the labels lie, if not where the study found them"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make one page of a run: curves, tables, plots, cost.

    A run is a fine-tuning study, a sweep, an ablation, a pre-training run, or
    the output of preprocessing (whose card.html is named or copied); its files
    say which. The page is one file that loads nothing, so it can be sent and
    kept. A run that is still at work can be looked at, too.

    Parity plots of a study and its error against the distance to the training
    set need the labels: the folder of the eight sets or the csv that it used;
    without them the page says so.

    Examples
    --------
    mips report runs/pretrain
    mips report runs/finetune -o study.html
    mips report runs/finetune --data data/benchmark
    """

    def work() -> None:
        from mips_dist.use.report.write import write_report

        print(f"report: {write_report(run_dir, output, data)}")

    raise typer.Exit(guarded(work, debug))
