"""The configuration of `mips plan`; its values stand in configs/plan.yaml."""

from dataclasses import dataclass, field

from mips_dist.model.mips import MipsConfig
from mips_dist.train.pretrain_config import PRECISIONS
from mips_dist.train.zero import ZeroConfig

CONTENTS = ("xtb", "full", "descriptors", "topology")
PRICES = (
    "price_gpu_hour",
    "price_machine_hour",
    "price_core_hour",
    "price_gb_month",
    "price_gb_egress",
)


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """What is to be trained, on what; constants of GPUs stand in configs/plan.yaml alone.

    Attributes
    ----------
    model, zero, precision, num_steps, global_batch_size, micro_batch_size, activation_checkpointing
        As in `PretrainConfig`.
    num_gpus, gpus_per_node, gpu_gb
        GPUs, GPUs of a machine, and memory of one GPU in 10^9 bytes.
    peak_tflops, peak_fraction
        10^12 operations a second of one GPU, and the part of it that a step reaches while the GPU
        is busy, with products or with anything else.
    layer_overhead_ms
        What a layer adds to that time in a micro-batch, forward and backward, however few polymers
        there are: the GPU waits for the processor.
    replay_overhead_ms
        The same where a step is recorded and replayed as one graph.
    memory_gb_s, nvlink_gb_s, network_gb_s
        10^9 bytes a second: of a GPU's memory, from a GPU to others of its machine, and from a
        machine to others.
    latency_us
        Of a collective of nearly nothing between two GPUs.
    loader_per_s
        Polymers a second that a rank's loader makes ready.
    decode_per_s
        Polymers a second that one of its processes decodes for all of them, of the windows that all
        ranks draw from, where the corpus is too large to be kept decoded.
    cores_per_node, node_memory_gb
        Of a machine: its cores, for preprocessing and loading, and 10^9 bytes of its memory.
    checkpoint_gb_s, recovery_s
        10^9 bytes of a checkpoint that rank 0 hashes and writes in a second; seconds from a failure
        to the first step after it.
    mtbf_hours
        Mean time between failures of one machine; null: none are counted.
    price_gpu_hour, price_machine_hour, price_core_hour, price_gb_month, price_gb_egress
        In any currency: an hour of a GPU, or of a machine with all its GPUs; an hour of a core for
        preprocessing; 10^9 bytes of storage for a month, and read from it. null: unknown.
    checkpoint_every, validate_every
        In steps, as in `PretrainConfig`.
    polymers, content
        Size of the corpus, and what preprocessing makes of it: full, descriptors or topology.
    """

    model: MipsConfig = field(default_factory=MipsConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: str = "bf16"
    num_steps: int = 20_000
    global_batch_size: int = 1024
    micro_batch_size: int = 0
    activation_checkpointing: bool = False
    num_gpus: int = 8
    gpus_per_node: int = 8
    gpu_gb: float
    peak_tflops: float
    peak_fraction: float
    layer_overhead_ms: float
    replay_overhead_ms: float
    memory_gb_s: float
    nvlink_gb_s: float
    network_gb_s: float
    latency_us: float
    loader_per_s: float
    decode_per_s: float
    cores_per_node: int
    node_memory_gb: float
    checkpoint_gb_s: float
    recovery_s: float
    mtbf_hours: float | None = None
    price_gpu_hour: float | None = None
    price_machine_hour: float | None = None
    price_core_hour: float | None = None
    price_gb_month: float | None = None
    price_gb_egress: float | None = None
    polymers: int = 1_000_000
    content: str = "full"
    checkpoint_every: int = 200
    validate_every: int = 200

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision} must be one of {', '.join(PRECISIONS)}")
        if self.content not in CONTENTS:
            raise ValueError(f"content={self.content} must be one of {', '.join(CONTENTS)}")
        for name in (
            "num_steps",
            "global_batch_size",
            "num_gpus",
            "gpus_per_node",
            "cores_per_node",
            "polymers",
            "checkpoint_every",
            "validate_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in (
            "layer_overhead_ms",
            "replay_overhead_ms",
            "latency_us",
            "recovery_s",
            *PRICES,
        ):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.price_gpu_hour is not None and self.price_machine_hour is not None:
            raise ValueError("price_gpu_hour and price_machine_hour: give one of the two")
        if self.mtbf_hours is not None and not self.mtbf_hours > 0:
            raise ValueError(f"mtbf_hours={self.mtbf_hours} must be above 0")
        for name in (
            "gpu_gb",
            "peak_tflops",
            "peak_fraction",
            "memory_gb_s",
            "nvlink_gb_s",
            "network_gb_s",
            "loader_per_s",
            "decode_per_s",
            "node_memory_gb",
            "checkpoint_gb_s",
        ):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
