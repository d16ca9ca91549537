"""Verbs that use a model."""

from pathlib import Path
from typing import Annotated

import typer

from mips_dist.cli.app import Debug, Input, Models, Output, app, property_option
from mips_dist.errors import guarded


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
        property_option("egc, egb, eea, ei, xc, eps, nc or eat; repeatable"),
    ] = None,
    models: Models = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="processes [the cores at hand, fewer for few rows]"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Predict properties of each polymer of a table, or of one.

    Every input column is kept; canonical, status (ok or rejected) and reason are
    added, then for each property p: p, p_lower and p_upper (they hold the true
    value of 9 in 10 polymers), p_distance (to the nearest training polymer, 0 to
    1), p_in_domain and p_unit. Rows in = rows out, in order, numbered from 0.

    Properties (-p) are those of the eight benchmark sets, by the models that
    come with the library. Other models (-m) are directories that fine-tuning
    leaves.

    Examples
    --------
    mips predict '*CC*' -p egc
    mips predict polymers.csv -p egc -p nc -o predictions.csv
    cat polymers.csv | mips predict - -m runs/mine/models/tg_K -o - > predictions.csv
    """

    def work() -> None:
        from mips_dist.use.predict_file import predict_given

        predict_given(input, [*(properties or []), *(models or [])], output, workers)

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
        property_option("as in mips predict; repeatable"),
    ] = None,
    models: Models = None,
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


@app.command()
def serve(
    properties: Annotated[
        list[str] | None,
        property_option("egc, egb, eea, ei, xc, eps, nc or eat; repeatable [without -m: all]"),
    ] = None,
    models: Models = None,
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, max=256, help="processes that compute")
    ] = 1,
    debug: Debug = False,
) -> None:
    """Serve predictions as a web page and a JSON API.

    The page at http://127.0.0.1:8000/ takes P-SMILES or a csv; POST /predict,
    GET /picture.svg, /models, /health, /ready and /openapi.json are for
    programs. Listens on this machine alone, and runs until Ctrl-C.
    docs/serve.md says more.

    Examples
    --------
    mips serve
    mips serve -p egc -p nc --port 8080
    mips serve -m runs/mine/models/tg_K --replicas 4
    """

    def work() -> int:
        from mips_dist.errors import MipsError
        from mips_dist.model.released import property_model

        directories = [*map(property_model, properties or []), *(models or [])]
        try:
            from mips_dist.data.properties import BENCHMARK
            from mips_dist.serve.app import run_server
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("mips_dist"):
                raise
            raise MipsError(
                "the server needs Ray Serve, which is not installed: pip install 'mips-dist[serve]'"
            ) from error
        everything = map(property_model, BENCHMARK)
        return run_server(directories or [*everything], host, port, replicas)

    raise typer.Exit(guarded(work, debug))
