"""The ``mips`` command: one thin verb each; the work is done elsewhere.

Heavy imports stand inside the verbs, so that ``mips --help`` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from mips_dist.errors import guarded
from mips_dist.shell import OPERATE, TRAIN, Shell, complete_property, run_app

app = Shell(help="mips predicts properties of polymers, each the infinite chain of a P-SMILES.")

Input = Annotated[Path, typer.Argument(metavar="FILE", help="csv or csv.gz with a psmiles column")]
Output = Annotated[Path, typer.Option("-o", "--output", help="csv or csv.gz to write")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"mips-dist {version('mips-dist')}")
        raise typer.Exit


@app.callback()
def mips(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


@app.command()
def canonicalize(input: Input, output: Output, debug: Debug = False) -> None:
    """Write the one canonical spelling of each polymer of a csv.

    Every input column is kept; canonical, status (ok or rejected) and reason are added.

    Examples
    --------
    mips canonicalize polymers.csv -o canonical.csv
    mips canonicalize corpus.csv.gz -o canonical.csv.gz
    mips canonicalize polymers.csv -o canonical.csv --debug
    """

    def work() -> None:
        from mips_dist.use.canonicalize import canonicalize_file

        canonicalize_file(input, output)

    raise typer.Exit(guarded(work, debug))


@app.command()
def predict(
    input: Input,
    output: Output,
    properties: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--property",
            help="egc, egb, eea, ei, xc, eps, nc or eat; repeatable",
            autocompletion=complete_property,
        ),
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option("-m", "--model", help="model directory; repeatable")
    ] = None,
    debug: Debug = False,
) -> None:
    """Predict properties of each polymer of a csv.

    Every input column is kept; canonical, status (ok or rejected), reason, then
    each prediction and its unit are added. Rows in = rows out, in order.

    Properties (-p) are those of the eight benchmark sets, by the models that
    come with the library. Other models (-m) are directories that fine-tuning
    leaves.

    Examples
    --------
    mips predict polymers.csv -p egc -o predictions.csv
    mips predict polymers.csv -p egc -p nc -o predictions.csv
    mips predict polymers.csv -m runs/mine/models/tg_K -o predictions.csv
    """

    def work() -> None:
        from mips_dist.errors import UsageError
        from mips_dist.model.released import property_model
        from mips_dist.use.predict_file import predict_file

        directories = [*map(property_model, properties or []), *(models or [])]
        if not directories:
            raise UsageError("nothing to predict; give a property (-p) or a model directory (-m)")
        predict_file(input, directories, output)

    raise typer.Exit(guarded(work, debug))


@app.command()
def rsit(
    input: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="csv or csv.gz with a psmiles column")
    ],
    output: Annotated[Path, typer.Option("--json", metavar="FILE", help="result to write")],
    model: Annotated[
        Path | None, typer.Option("-m", "--model", help="directory of a property model")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="column of labels [default: value, or the model's property]"),
    ] = None,
    max_polymers: Annotated[
        int, typer.Option("--max-polymers", min=2, help="polymers drawn from the file")
    ] = 200,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="of the GIN's training")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of everything random")] = 0,
    debug: Debug = False,
) -> None:
    """Measure what respelling a polymer does to predictions (RSIT).

    The paper's Algorithm 2 with 5 respellings of each polymer (shift, repetition,
    direction), each verified to be the same polymer. The paper's GIN is tested
    under every star strategy: keep, remove, substitute, linking with the
    features of the cut unit as released, and linking as here. It is trained on
    the spellings as given where the csv has 20 labelled polymers, else its
    weights are random. The gap is the drop of R2. A model (-m) is tested as
    mips predict runs it; the command fails where its predictions change at all.

    Examples
    --------
    mips rsit --input Egc.csv --json rsit.json
    mips rsit -m runs/study/models/egc --input Egc.csv --json rsit.json
    mips rsit --input my.csv --label tg_K --max-polymers 50 --json rsit.json
    """

    def work() -> None:
        from functools import partial

        from mips_dist.model.gin import GinConfig
        from mips_dist.train.gin_training import fit_gin
        from mips_dist.use.rsit import rsit_file

        fit = partial(fit_gin, config=GinConfig(), num_epochs=epochs, seed=seed)
        rsit_file(input, output, fit, model, label, max_polymers, seed)

    raise typer.Exit(guarded(work, debug))


@app.command()
def fragments(
    model: Annotated[Path, typer.Option("-m", "--model", help="property model, linear head")],
    input: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="csv or csv.gz with a psmiles column")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write")],
    debug: Debug = False,
) -> None:
    """Say what each fragment adds to a property, over a csv.

    Writes fragments.csv and fragments.html (the fragments drawn, sorted by
    their mean effect). Needs a model with a linear head (model.head=linear in
    fine-tuning): under it the contributions of a polymer's fragments sum to
    its prediction less one constant.

    Examples
    --------
    mips fragments -m runs/linear/models/egc --input Egc.csv -o runs/fragments
    mips fragments -m runs/linear/models/tg_K --input my.csv.gz -o runs/tg_fragments
    mips fragments -m runs/linear/models/egc --input Egc.csv -o runs/fragments --debug
    """

    def work() -> None:
        from mips_dist.use.fragments import fragments_file

        fragments_file(input, model, output)

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


@app.command()
def explain(
    what: Annotated[
        str,
        typer.Argument(metavar="PSMILES", help="one polymer, quoted; or a csv of polymers"),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write; svg for bands")],
    properties: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--property",
            help="as in mips predict; repeatable",
            autocompletion=complete_property,
        ),
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option("-m", "--model", help="model directory; repeatable")
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what each atom and fragment adds to a prediction.

    With a property (-p) or a model (-m): Shapley values of the atoms of the
    repeat unit, which sum with those of whole-chain features to the
    prediction less a reference. The folder gets a picture (svg) for each
    polymer and property, atoms.csv, fragments.csv and polymers.csv.
    docs/explain.md says what they mean and what they do not.

    Without: band structure and density of states of the infinite chain, by
    tight binding, as one svg.

    Examples
    --------
    mips explain '*c1ccc(*)s1' -p egc -o thiophene
    mips explain polymers.csv -p egc -m runs/mine/models/tg_K -o explained
    mips explain '*c1ccc(*)s1' -o bands.svg
    """

    def work() -> None:
        from mips_dist.model.released import property_model
        from mips_dist.use.explain.write import explain_polymers

        directories = [*map(property_model, properties or []), *(models or [])]
        explain_polymers(what, directories, output)

    raise typer.Exit(guarded(work, debug))


@app.command(rich_help_panel=OPERATE)
def plan(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="see configs/plan.yaml")
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what pre-training costs and where more GPUs stop to help.

    Runs nothing. Prints memory of a GPU by ZeRO stage, the time of a step and its parts,
    what a GPU sends, hours, preprocessing, disk, the same on 1 to 1,024 GPUs,
    and what all of it rests on. docs/scaling.md derives the model and compares
    it with measured steps.

    What is trained: model (debug, small, base, large, xl), model.KEY,
    precision, num_steps, global_batch_size, micro_batch_size,
    activation_checkpointing, zero.stage, zero.offload, zero.bucket_elements.

    On what: num_gpus, gpus_per_node; of a GPU gpu_gb (memory), peak_tflops,
    peak_fraction (of it that a busy GPU reaches), layer_overhead_ms (of a
    layer in a micro-batch, however small), memory_gb_s, loader_per_s (polymers);
    between GPUs nvlink_gb_s (inside a machine), network_gb_s (of a machine to
    others), latency_us.

    From what: polymers (of the corpus), content (full, descriptors, topology).

    Examples
    --------
    mips plan
    mips plan model=base num_gpus=8 gpu_gb=80 polymers=1000000
    mips plan model=xl num_gpus=64 network_gb_s=400
    """

    def work() -> None:
        from mips_dist.config import compose
        from mips_dist.train.plan import plan as make_plan
        from mips_dist.train.plan_config import PlanConfig

        print("\n".join(make_plan(compose(PlanConfig, "plan", overrides or []))))

    raise typer.Exit(guarded(work, debug))


def main() -> None:
    """Run the command line and exit; usage errors with 2."""
    run_app(app)


if __name__ == "__main__":
    main()
