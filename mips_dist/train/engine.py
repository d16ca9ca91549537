"""The only importer of DeepSpeed: ranks, and a training engine that hides DeepSpeed's corners.

What a user never has to know, because it is settled here: which accelerator DeepSpeed picks, its
just-in-time builds (and the stale locks that they leave), its wish for MPI, its chatter, stage 0
with bf16, the gradient norm that stage 0 does not report, and its two divisions of the loss.
"""

import atexit
import contextlib
import io
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mips_dist.errors import MipsError, UsageError
from mips_dist.train import partitions
from mips_dist.train.partitions import StateBytes

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16", "fp16")

# Elements that one reduction or gather carries: a few collectives per step for the base preset,
# while the buffer stays small beside the training state (DeepSpeed's default is 500 million).
_BUCKET_ELEMENTS = 16_000_000
# ZeRO-3 leaves parameters up to this size whole on every rank: norms and biases, not matrices.
_PERSISTENT_ELEMENTS = 1_024


@dataclass(kw_only=True, slots=True)
class ZeroConfig:
    """What the ranks share out: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights."""

    stage: int = 1

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"zero.stage={self.stage} must be 0, 1, 2 or 3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Where one process stands among the processes of the run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Add numbers over all ranks in float64; every rank gets the sums."""
        # float64 holds every count and every float32 sum exactly enough not to depend on the split.
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def share(self, make: Callable[[], T]) -> T:
        """Call a function on rank 0 and give every rank its result.

        When it raises a ``MipsError``, every rank leaves with that error's exit code, and only
        rank 0 prints the line.
        """
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except MipsError as error:
                box[1] = error
                dist.broadcast_object_list([None, error.exit_code], src=0)
                raise
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            _leave_quietly(box[1])
        return box[0]

    def together(self, make: Callable[[], T]) -> T:
        """Call a function on every rank; when it fails on some, all leave and one says why."""
        value, error = None, None
        try:
            value = make()
        except MipsError as caught:
            error = caught
        speaker = torch.tensor(self.rank if error else self.world_size, device=self.device)
        dist.all_reduce(speaker, dist.ReduceOp.MIN)
        if error is not None and self.rank == int(speaker):
            raise error
        if int(speaker) < self.world_size:
            _leave_quietly(MipsError.exit_code if error is None else error.exit_code)
        return cast(T, value)

    def fail(self, error: MipsError) -> None:
        """Leave with an error that every rank has found; rank 0 prints it."""
        if not self.is_main:
            _leave_quietly(error.exit_code)
        raise error


def _leave_quietly(exit_code: int) -> None:
    """Exit without a word, a moment after another rank has printed its line.

    A launcher ends all ranks as soon as one has failed; the delay lets the line come first.
    """
    time.sleep(2.0)
    sys.exit(exit_code)


def start(precision: str, num_threads: int = 0, build_dir: Path | None = None) -> Ranks:
    """Join the ranks that a launcher started, or be the only rank of a plain ``python`` process.

    Parameters
    ----------
    precision
        ``fp32``, ``bf16`` or ``fp16``; fp16 needs a GPU.
    num_threads
        CPU threads of this rank; 0 shares this machine's cores out among its ranks.
    build_dir
        Where DeepSpeed may put what it compiles; a folder of our own, so that a lock that a killed
        process left elsewhere cannot stop us.
    """
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ["MASTER_PORT"] = str(_free_port())
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    has_gpu = torch.cuda.is_available()
    if precision == "fp16" and not has_gpu:
        if rank != 0:
            _leave_quietly(UsageError.exit_code)
        raise UsageError("precision=fp16 needs a CUDA GPU; use precision=bf16 or precision=fp32")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    torch.set_num_threads(num_threads or max(1, len(os.sched_getaffinity(0)) // local_size))
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if build_dir is not None:
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(build_dir))
    deepspeed = _import_deepspeed(has_gpu)
    if not dist.is_initialized():
        deepspeed.init_distributed("nccl" if has_gpu else "gloo", verbose=False)
        # Once for the process: DeepSpeed remembers its groups, and torch warns of open ones.
        atexit.register(dist.destroy_process_group)
    return Ranks(rank=rank, world_size=dist.get_world_size(), local_rank=local_rank, device=device)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _import_deepspeed(has_gpu: bool) -> Any:
    """Import DeepSpeed quietly, with the environment that it reads at import."""
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise MipsError(
            f"DeepSpeed cannot be imported ({error}); install it: pip install -e .[train]"
        ) from error
    # Its shared-memory collectives are compiled at the first start-up: a minute with nothing on
    # the screen, and for ever when a killed process left its lock. gloo does without.
    # (`import deepspeed.comm.torch` would give torch itself: the name is shadowed.)
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Advice to DeepSpeed's authors about names in torch, repeated at every collective.
    warnings.filterwarnings("ignore", r".*is deprecated. Please use", FutureWarning, "torch")
    return deepspeed


def settle_stage(stage: int, precision: str) -> tuple[int, str | None]:
    """Return the ZeRO stage that can run at this precision, and a line when it is another one."""
    if stage == 0 and precision != "fp32":
        return 1, (
            f"zero.stage=0 with precision={precision} runs as stage 1: DeepSpeed's stage 0 follows "
            "another update rule there"
        )
    return stage, None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step did: ``is_applied`` on every rank or on none."""

    is_applied: bool
    grad_norm: float


class TrainEngine:
    """A module with optimizer, gradient accumulation, clipping and ZeRO, on the ranks of the run.

    Parameters
    ----------
    module
        Built alike on every rank (rank 0's weights win); fp32.
    make_optimizer
        Gives a ``torch.optim.Adam`` for the module's parameters. Never DeepSpeed's own
        optimizers: they are compiled on first use.
    ranks, stage, precision
        From `start` and `settle_stage`.
    micro_batch_size, grad_accum_steps
        Polymers per micro-batch of a rank, and micro-batches per optimizer step.
    clip_norm
        Largest global gradient norm; 0 switches clipping off.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        ranks: Ranks,
        *,
        stage: int,
        precision: str,
        micro_batch_size: int = 1,
        grad_accum_steps: int = 1,
        clip_norm: float = 0.0,
    ) -> None:
        import deepspeed

        self.ranks = ranks
        self.stage = stage
        self.precision = precision
        self._clip_norm = clip_norm
        optimizer = make_optimizer([p for p in module.parameters() if p.requires_grad])
        self._engine: Any
        # Its bf16 optimizer prints memory tables that no log level silences.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                dist_init_required=False,
                config=self._deepspeed_config(micro_batch_size, grad_accum_steps),
            )

    def _deepspeed_config(self, micro_batch_size: int, grad_accum_steps: int) -> dict[str, Any]:
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": grad_accum_steps,
            # Stage 0 clips in `step`, where the norm is needed anyway.
            "gradient_clipping": self._clip_norm if self.stage > 0 else 0.0,
            "steps_per_print": None,
            "zero_optimization": {
                "stage": self.stage,
                "reduce_bucket_size": _BUCKET_ELEMENTS,
                "allgather_bucket_size": _BUCKET_ELEMENTS,
                "stage3_prefetch_bucket_size": _BUCKET_ELEMENTS,
                "stage3_param_persistence_threshold": _PERSISTENT_ELEMENTS,
                "overlap_comm": self.ranks.device.type == "cuda",
            },
            "bf16": {"enabled": self.precision == "bf16"},
            "fp16": {"enabled": self.precision == "fp16"},
        }
        if self.precision != "fp32":
            # Micro-batches and ranks add up in fp32, whatever the products are computed in.
            config["data_types"] = {"grad_accum_dtype": "fp32"}
            config["communication_data_type"] = "fp32"
        return config

    @property
    def module(self) -> nn.Module:
        """The trained module; under ZeRO-3 its weights are whole only inside its forward."""
        return self._engine.module

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights in the products; the optimizer always keeps fp32."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.precision
        ]

    def __call__(self, *inputs: Any) -> Any:
        """Run the module's forward."""
        return self._engine(*inputs)

    def backward(self, loss_sum: Tensor, global_count: float, *, is_last: bool) -> None:
        """Add one micro-batch's gradient of (sum of losses over all ranks) / ``global_count``.

        DeepSpeed averages gradients over ranks, hence the factor; its second division, by the
        accumulation steps, is switched off. So the split into ranks and micro-batches cancels.
        A loss that is not finite gives a gradient that is not finite either, on which all ranks
        agree in `step`.
        """
        is_finite = torch.isfinite(loss_sum.detach())
        scale = torch.where(is_finite, self.ranks.world_size / global_count, torch.nan)
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss_sum * scale, scale_wrt_gas=False)

    def step(self, lr: float) -> StepResult:
        """Clip and apply the accumulated gradient, unless its norm is not finite on some rank."""
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            return self._plain_step()
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return StepResult(is_applied=bool(self._engine.was_step_applied()), grad_norm=norm)

    def _plain_step(self) -> StepResult:
        """Stage 0: gradients are already averaged and whole on every rank, so the norm is local."""
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters]
        norm = float(nn.utils.get_total_norm(gradients))
        is_finite = norm < float("inf")
        if is_finite:
            if self._clip_norm > 0:
                # The same formula as in DeepSpeed's other stages.
                shrink = 1.0 / max(1.0, (norm + 1e-6) / self._clip_norm)
                torch._foreach_mul_(gradients, shrink)
            self._engine.step()
        else:
            self._engine.zero_grad()
        return StepResult(is_applied=is_finite, grad_norm=norm)

    def full_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Gather weights and Adam moments by parameter name; all ranks must run through it.

        Yields
        ------
        name, {"weight", "exp_avg", "exp_avg_sq"}
            fp32 on the CPU on rank 0, an empty dict on the others: nothing in it depends on
            world size, stage or precision.
        """
        return partitions.gather(self._engine, self.ranks.rank)

    def adam_steps(self) -> int:
        """Return Adam's own step counter, which skipped steps do not advance."""
        return partitions.adam_steps(self._engine)

    def load_full_state(self, read: Callable[[str], Mapping[str, Tensor]], adam_steps: int) -> None:
        """Put gathered state back, at any world size and stage; all ranks must call it.

        ``read`` gives the tensors of one parameter, as `full_state` yielded them.
        """
        partitions.scatter(self._engine, read, adam_steps)

    def state_bytes(self) -> StateBytes:
        """Measure what this rank holds now; gradients exist between `backward` and `step`."""
        return partitions.measure(self._engine)

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the module and drop its buffers."""
        self._engine.destroy()
