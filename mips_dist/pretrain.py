"""Pre-train on shards: `deepspeed|torchrun|python mips_dist/pretrain.py key=value ...`.

Examples
--------
One process::

    python mips_dist/pretrain.py shards=DIR run_dir=RUN model=debug num_steps=200

Two ranks, either launcher::

    deepspeed --num_gpus 2 mips_dist/pretrain.py shards=DIR run_dir=RUN zero.stage=2
    torchrun --nproc_per_node 2 mips_dist/pretrain.py shards=DIR run_dir=RUN zero.stage=2

The same command again continues the run; `--help` lists every key. Defines functions only: under a
launcher this file is the module `__main__`.
"""

from mips_dist.errors import needs_extra

with needs_extra():
    from mips_dist.config import run
    from mips_dist.train import launcher  # before torch, whose import takes seconds
    from mips_dist.train.engine import leave
    from mips_dist.train.pretraining import PretrainConfig, train


def main(config: PretrainConfig) -> int:
    """Train; return the exit code."""
    launcher.watch()
    return train(config)


if __name__ == "__main__":
    leave(run(main, PretrainConfig, "pretrain"))
