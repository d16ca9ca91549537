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
    input: Input,
    output: Output,
    model: Annotated[Path, typer.Option("-m", "--model", help="model directory")],
    debug: Debug = False,
) -> None:
    """Predict a property for every polymer of a csv.

    Every input column is kept; canonical, status (ok or rejected), reason, the prediction and its
    unit are added. Rows in = rows out, in order.

    Example: mips predict polymers.csv -m runs/quickstart/finetune/models/tg_K -o predictions.csv
    """

    def work() -> None:
        from mips_dist.use.predict import predict_file

        predict_file(input, model, output)

    raise typer.Exit(guarded(work, debug))


@app.command()
def explain(
    psmiles: Annotated[str, typer.Argument(metavar="PSMILES", help="one polymer, quoted")],
    output: Annotated[Path, typer.Option("-o", "--output", help="svg to write")],
    debug: Debug = False,
) -> None:
    """Draw the bands and the density of states of a polymer's infinite chain.

    Tight binding on the graph alone: all valence orbitals, and the pi bands by Hueckel; highest
    filled and lowest empty level and the gap are marked. docs/science.md says what the model is.

    Example: mips explain '*c1ccc(*)s1' -o polythiophene.svg
    """

    def work() -> None:
        from mips_dist.use.explain import explain_file

        explain_file(psmiles, output)

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
