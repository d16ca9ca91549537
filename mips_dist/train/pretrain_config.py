"""The configuration of a pre-training run."""

from dataclasses import dataclass, field

from mips_dist.data.masking import MaskingConfig
from mips_dist.model.mips import MipsConfig
from mips_dist.train.optim import OptimizerConfig
from mips_dist.train.zero import ZeroConfig

PRECISIONS = ("fp32", "bf16", "fp16")

_MOST_LOADER_WORKERS = 8
# Of the memory that is free, for polymers that the loader's processes have decoded, 2.2 kB each.
DECODED_SHARE = 0.25
QUICKSTART_SHARDS = "runs/quickstart/shards"


def loader_workers(num_cores: int, num_ranks: int) -> int:
    """Return how many processes make the batches of one of a machine's ranks that have a GPU."""
    return max(1, min(_MOST_LOADER_WORKERS, num_cores // num_ranks - 1))


@dataclass(kw_only=True, slots=True)
class PretrainConfig:
    """A pre-training run.

    Attributes
    ----------
    shards
        Folder made by ``python -m preprocess``, or its URL (``s3://``, ``https://``).
    cache_gb
        Disk in ``run_dir`` for shards that come from a URL, in 10^9 bytes; 0: none.
    run_dir
        Where everything goes, a folder or a URL (``s3://``); the same command again continues what
        is there.
    model, masking, optimizer, zero
        See their classes.
    precision
        fp32, bf16 or fp16 (GPU only); the optimizer keeps fp32 in any case.
    activation_checkpointing
        Whether each layer keeps its input only and is computed again in the backward pass: less
        memory, a third more work, the same bits.
    compile
        Whether the layers are compiled, which takes a minute at the start; None: on a GPU, up to
        ZeRO stage 2.
    num_steps
        Optimizer steps of the whole run.
    global_batch_size
        Polymers of a step over all ranks.
    micro_batch_size
        Polymers of one forward and backward pass of a rank; 0 chooses. The accumulation steps
        follow from these two and the number of ranks.
    held_out_fraction
        Expected fraction of polymers kept for validation, chosen by their canonical spelling.
    checkpoint_every, validate_every
        In steps.
    seed
        Of initial weights, order, masks and dropout.
    num_threads
        CPU threads of a rank; 0 shares the cores out among the ranks of a machine.
    loader_workers
        Processes of a rank that make its batches ahead, each with two windows of polymers in
        memory; None: up to 8 for a GPU, none for a CPU.
    timeout_minutes
        A job in which a rank makes no step for so long ends, and says which rank it was.
    """

    shards: str = QUICKSTART_SHARDS
    cache_gb: float = 2.0
    run_dir: str = "runs/pretrain"
    model: MipsConfig = field(default_factory=MipsConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: str = "fp32"
    activation_checkpointing: bool = False
    compile: bool | None = None
    num_steps: int = 2_000
    global_batch_size: int = 256
    micro_batch_size: int = 0
    held_out_fraction: float = 0.05
    checkpoint_every: int = 200
    validate_every: int = 200
    seed: int = 0
    num_threads: int = 0
    loader_workers: int | None = None
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision} must be one of {', '.join(PRECISIONS)}")
        for name in ("num_steps", "global_batch_size", "checkpoint_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("micro_batch_size", "num_threads", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.loader_workers is not None and self.loader_workers < 0:
            raise ValueError(f"loader_workers={self.loader_workers} must not be negative")
        if not self.timeout_minutes > 0:
            raise ValueError(f"timeout_minutes={self.timeout_minutes} must be above 0")
        if not 0 <= self.cache_gb < float("inf"):
            raise ValueError(f"cache_gb={self.cache_gb} must be a number that is not negative")
        if not 0 <= self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction={self.held_out_fraction} must be in [0, 1)")
