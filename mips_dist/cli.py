"""The ``mips`` command: one thin verb each; the work is done elsewhere.

Heavy imports stand inside the verbs, so that ``mips --help`` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from mips_dist.config import guarded

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Predict polymer properties from P-SMILES, on the exact graph of the infinite chain.",
)

Input = Annotated[Path, typer.Argument(metavar="FILE", help="csv or csv.gz with a psmiles column")]
Output = Annotated[Path, typer.Option("-o", "--output", help="csv or csv.gz to write")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


@app.command()
def canonicalize(input: Input, output: Output, debug: Debug = False) -> None:
    """Write the one canonical spelling of every polymer of a csv.

    Every input column is kept; canonical, status (ok or rejected) and reason are added.

    Example: mips canonicalize polymers.csv -o canonical.csv
    """

    def work() -> None:
        from mips_dist.use.canonicalize import canonicalize_file

        canonicalize_file(input, output)

    raise typer.Exit(guarded(work, debug))


@app.command()
def predict(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="csv, csv.gz or parquet; - is a csv on stdin; or one P-SMILES"
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="csv, csv.gz or parquet; - is a csv on stdout"),
    ] = None,
    properties: Annotated[
        list[str] | None,
        typer.Option("-p", "--property", help="egc, egb, eea, ei, xc, eps, nc or eat; repeatable"),
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option("-m", "--model", help="model directory; repeatable")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="processes [the cores at hand, fewer for few rows]"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Predict properties for every polymer of a table, or for one P-SMILES.

    Every input column is kept; canonical, status (ok or rejected) and reason are
    added, then for each property p: p, p_lower and p_upper (they hold the true
    value of 9 in 10 polymers), p_distance (to the nearest training polymer, 0 to
    1), p_in_domain and p_unit. Rows in = rows out, in order, numbered from 0.

    Properties (-p) are those of the eight benchmark sets, by the models that
    come with the library. Other models (-m) are directories that fine-tuning
    leaves.

    Example: mips predict '*CC*' -p egc

    Example: mips predict polymers.csv -p egc -p nc -o predictions.csv

    Example: cat polymers.csv | mips predict - -m MODEL_DIRECTORY -o - | less
    """

    def work() -> None:
        from mips_dist.use.predict_file import predict_given

        predict_given(input, [*(properties or []), *(models or [])], output, workers)

    raise typer.Exit(guarded(work, debug))


@app.command()
def embed(
    input: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="table with a column psmiles, or one P-SMILES"),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help=".npz or .parquet to write")],
    model: Annotated[
        str, typer.Option("-m", "--model", help="a released model's name, or a model directory")
    ] = "mips-small",
    atoms: Annotated[bool, typer.Option("--atoms", help="vectors of the atoms, too")] = False,
    debug: Debug = False,
) -> None:
    """Write the vector of every polymer, as a network sees it.

    A vector is the mean over the atoms of the repeat unit after the last layer: what the head of a
    property model reads. Any model will do, pre-trained or of a property. Beside it stand row,
    canonical, status and reason, for every row of the input. A .parquet is written as it is
    computed; a .npz (numpy, no pickle) is held in memory until it is complete.

    Examples
    --------
    mips embed polymers.csv -o vectors.npz
    mips embed '*CC(*)c1ccccc1' -m egc -o styrene.npz
    mips embed polymers.csv -m runs/tg/models/tg --atoms -o vectors.parquet
    """

    def work() -> None:
        from mips_dist.use.embed import embed_given

        embed_given(input, model, output, atoms)

    raise typer.Exit(guarded(work, debug))


@app.command()
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
    """Train a model of your own property, and say first how good it is.

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
    """Measure how predictions change with the spelling of a polymer (RSIT).

    The paper's Algorithm 2 with 5 respellings of each polymer (shift, repetition,
    direction), each verified to be the same polymer. The paper's GIN is tested
    under every star strategy: keep, remove, substitute, linking with the
    features of the cut unit as released, and linking as here. It is trained on
    the spellings as given where the csv has 20 labelled polymers, else its
    weights are random. The gap is the drop of R2. A model (-m) is tested as
    mips predict runs it; the command fails where its predictions change at all.

    Example: mips rsit -m runs/study/models/egc --input Egc.csv --json rsit.json
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
    """Say what each fragment adds to a property, over the polymers of a csv.

    Writes fragments.csv and fragments.html (the fragments drawn, sorted by
    their mean effect). Needs a model with a linear head (model.head=linear in
    fine-tuning): under it the contributions of a polymer's fragments sum to
    its prediction less one constant.

    Example: mips fragments -m runs/linear/models/egc --input Egc.csv -o runs/fragments
    """

    def work() -> None:
        from mips_dist.use.fragments import fragments_file

        fragments_file(input, model, output)

    raise typer.Exit(guarded(work, debug))


@app.command()
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
    """Make one page of a run: curves, tables, plots, cost, and how it was made.

    A run is a fine-tuning study, a sweep, an ablation, a pre-training run, or
    the output of preprocessing (whose card.html is named or copied); its files
    say which. The page is one file that loads nothing, so it can be sent and
    kept. A run that is still at work can be looked at, too.

    Parity plots of a study and its error against the distance to the training
    set need the labels: the folder of the eight sets or the csv that it used;
    without them the page says so.

    Example: mips report runs/finetune -o study.html

    mips report runs/pretrain

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
        list[str] | None, typer.Option("-p", "--property", help="as in mips predict; repeatable")
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option("-m", "--model", help="model directory; repeatable")
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what each atom and fragment adds to a prediction; without a model, draw the bands.

    With a property (-p) or a model (-m): Shapley values of the atoms of the
    repeat unit, which sum with those of whole-chain features to the
    prediction less a reference. The folder gets a picture (svg) for each
    polymer and property, atoms.csv, fragments.csv and polymers.csv.
    docs/explain.md says what they mean and what they do not.

    Without: band structure and density of states of the infinite chain, by
    tight binding, as one svg.

    Example: mips explain '*c1ccc(*)s1' -p egc -o thiophene

    mips explain polymers.csv -p egc -m runs/mine/models/tg_K -o explained

    mips explain '*c1ccc(*)s1' -o bands.svg
    """

    def work() -> None:
        from mips_dist.model.released import property_model
        from mips_dist.use.explain.write import explain_polymers

        directories = [*map(property_model, properties or []), *(models or [])]
        explain_polymers(what, directories, output)

    raise typer.Exit(guarded(work, debug))


@app.command()
def serve(
    properties: Annotated[
        list[str] | None,
        typer.Option("-p", "--property", help="egc, egb, eea, ei, xc, eps, nc or eat; repeatable"),
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option("-m", "--model", help="model directory; repeatable")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, max=256, help="processes that compute")
    ] = 1,
    debug: Debug = False,
) -> None:
    """Serve predictions as a web page and a JSON API, on this machine alone.

    The page at http://127.0.0.1:8000/ takes P-SMILES or a csv; POST /predict,
    GET /picture.svg, /models, /health, /ready and /openapi.json are for
    programs. Without -p and -m every model that comes with the library is
    served. Runs until Ctrl-C. docs/serve.md says more.

    Example: mips serve

    Example: mips serve -p egc -p nc --port 8080

    Example: mips serve -m runs/mine/models/tg_K --replicas 4
    """

    def work() -> int:
        from mips_dist.data.properties import BENCHMARK
        from mips_dist.errors import MipsError
        from mips_dist.model.released import property_model

        names = properties or ([] if models else list(BENCHMARK))
        directories = [*map(property_model, names), *(models or [])]
        try:
            from mips_dist.serve.app import run_server
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("mips_dist"):
                raise
            raise MipsError(
                "the server needs Ray Serve, which is not installed; pip install 'mips-dist[serve]'"
            ) from error
        return run_server(directories, host, port, replicas)

    raise typer.Exit(guarded(work, debug))


@app.command()
def plan(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="see configs/plan.yaml")
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what pre-training costs and where more GPUs stop to help. Runs nothing.

    Prints memory of a GPU by ZeRO stage, the time of a step and its parts,
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

    Example: mips plan model=xl num_gpus=64 network_gb_s=400
    """

    def work() -> None:
        from mips_dist.config import compose
        from mips_dist.train.plan import plan as make_plan
        from mips_dist.train.plan_config import PlanConfig

        print("\n".join(make_plan(compose(PlanConfig, "plan", overrides or []))))

    raise typer.Exit(guarded(work, debug))


def main() -> None:
    """Run the command line and exit; usage errors with 2."""
    app(prog_name="mips")


if __name__ == "__main__":
    main()
