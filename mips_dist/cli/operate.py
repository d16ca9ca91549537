"""Verbs around the machines."""

from pathlib import Path
from typing import Annotated

import typer

from mips_dist.cli.app import Debug, app
from mips_dist.errors import guarded
from mips_dist.shell import OPERATE


@app.command(rich_help_panel=OPERATE)
def plan(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="see configs/plan.yaml")
    ] = None,
    rehearse: Annotated[
        Path | None,
        typer.Option("--rehearse", metavar="FILE", help="plan for this machine and these polymers"),
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

    From what: polymers (of the corpus), content (xtb, full, descriptors,
    topology).

    With --rehearse FILE (csv or parquet with a column of P-SMILES) the plan is
    for the machine where it is typed, on num_gpus ranks: the real commands do
    some rows and some steps of the job in a temporary folder, about a minute,
    and the rest follows from that. polymers is then the rows of the file.

    Examples
    --------
    mips plan
    mips plan model=base num_gpus=8 gpu_gb=80 polymers=1000000
    mips plan model=xl num_gpus=64 network_gb_s=400
    mips plan --rehearse polymers.csv model=small precision=fp32 num_gpus=2 global_batch_size=256
    """

    def work() -> None:
        from mips_dist.config import compose
        from mips_dist.train.plan import plan as make_plan
        from mips_dist.train.plan_config import PlanConfig

        config = compose(PlanConfig, "plan", overrides or [])
        if rehearse is None:
            print("\n".join(make_plan(config)))
            return
        from mips_dist.train import rehearsal
        from mips_dist.use.table import PolymerTable

        chunks = PolymerTable.open(rehearse).chunks("reading")
        texts = [text for chunk in chunks for text in chunk.texts]
        if not any(text.startswith("polymers=") for text in overrides or []):
            config.polymers = len(texts)
        print("\n".join(rehearsal.describe(config, rehearsal.rehearse(config, texts))))

    raise typer.Exit(guarded(work, debug))


@app.command(rich_help_panel=OPERATE)
def doctor(
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="[FOLDER]...", help="where runs go; default: runs")
    ] = None,
    hosts: Annotated[
        str, typer.Option(help="names of hosts to look at over ssh, comma between")
    ] = "",
    hostfile: Annotated[Path | None, typer.Option(help="the same, a hostfile of DeepSpeed")] = None,
    json: Annotated[Path | None, typer.Option(help="also write the findings to this file")] = None,
    debug: Debug = False,
) -> None:
    """Say what will fail on this machine or cluster, and the remedy.

    One line for each finding: ok, warning, problem, or unchecked. Exit code 1 where there is a
    problem. Nothing is changed, and everything that is looked at has a time limit.

    Of this machine: versions against the lock file, cores, memory and shared memory (limits of a
    container too), open files, disks, compiler, locks of builds that were killed, GPUs.

    Of the Ray cluster that RAY_ADDRESS names: token, versions, nodes, clocks, and whether every
    node reaches every other, by TCP and by an all-reduce. With --hosts or --hostfile the same
    over ssh, which is how deepspeed and torchrun see them.

    Examples
    --------
    mips doctor
    mips doctor /shared/runs --json doctor.json
    mips doctor --hosts node1,node2
    mips doctor --hostfile cluster/deepspeed/hostfile
    """

    def work() -> int:
        from mips_dist.doctor.command import doctor as look

        return look(folders or [], hosts, hostfile, json)

    raise typer.Exit(guarded(work, debug))
