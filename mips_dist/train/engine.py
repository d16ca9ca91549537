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
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mips_dist.errors import MipsError, UsageError
from mips_dist.train import launcher, partitions
from mips_dist.train.flat_gradients import add_gradients, use_flat_gradients
from mips_dist.train.partitions import StateBytes
from mips_dist.train.ranks import Ranks, leave_quietly
from mips_dist.train.zero import ZeroConfig

# ZeRO-3 leaves parameters up to this size whole on every rank: norms and biases, not matrices.
_PERSISTENT_ELEMENTS = 1_024


# The watchdog ends a stuck job at its limit, with a line; torch's own limit, this much later and
# with a traceback, is for what happens before the watchdog watches.
_GRACE_MINUTES = 2.0


def start(
    precision: str,
    num_threads: int = 0,
    build_dir: Path | None = None,
    timeout_minutes: float = 30.0,
) -> Ranks:
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
    timeout_minutes
        How long the other ranks may take to arrive, and after that to answer.
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
            leave_quietly(UsageError.exit_code)
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
        _meet("nccl" if has_gpu else "gloo", timedelta(minutes=timeout_minutes + _GRACE_MINUTES))
        deepspeed.init_distributed(verbose=False)  # finds torch's group and takes it
        # Once for the process: DeepSpeed remembers its groups, and torch warns of open ones.
        atexit.register(dist.destroy_process_group)
    return Ranks(rank=rank, world_size=dist.get_world_size(), local_rank=local_rank, device=device)


def _meet(backend: str, timeout: timedelta) -> None:
    """Let the ranks of this job find each other at the port that the launcher named."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            backend,
            # A second job at the same port must not become a part of the first.
            store=dist.PrefixStore(f"mips_{launcher.job()}", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise MipsError(
                f"{where} is taken by another program, perhaps by another run on this host; give "
                "this one a port of its own: deepspeed --master_port 29501, torchrun --standalone"
            ) from error
        raise MipsError(
            f"rank {os.environ['RANK']}: the {os.environ['WORLD_SIZE']} ranks did not find each "
            f"other at {where} ({' '.join(str(error).split())[:200]}); start all of them at the "
            "same time"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def leave(code: int) -> NoReturn:
    """End this process here, after its last words, without the interpreter's own end.

    Threads of torch's stores and groups that still live then abort the process now and then, which
    a launcher takes for a failed rank.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    # Functions of an optimizer that is never used would be marked for compilation, for which torch
    # loads its compiler: a second or more at every start.
    compiler = sys.modules["deepspeed.runtime.compiler"]
    compiler.compile = lambda: lambda function: function  # type: ignore[attr-defined]
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Advice to DeepSpeed's authors about names in torch, repeated at every collective.
    warnings.filterwarnings("ignore", r".*is deprecated. Please use", FutureWarning, "torch")
    return deepspeed


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step did: ``is_applied`` () bool, alike on every rank; ``grad_norm`` ().

    Perhaps on a device that is not done with them.
    """

    is_applied: Tensor
    grad_norm: Tensor


class TrainEngine:
    """A module with optimizer, gradient accumulation, clipping and ZeRO, on the ranks of the run.

    Parameters
    ----------
    make_module
        Builds the module, fp32 on the CPU, alike on every rank (rank 0's weights win). Under ZeRO-3
        each part is shared out as soon as it is built, so that no rank ever holds all weights; the
        weights are the same as without.
    make_optimizer
        Gives a ``torch.optim.Adam`` for the module's parameters. Never DeepSpeed's own
        optimizers: they are compiled on first use.
    ranks, stage, precision
        From `start` and `choose_stage`.
    zero
        The rest of the ZeRO settings.
    micro_batch_size, grad_accum_steps
        Polymers per micro-batch of a rank, and micro-batches per optimizer step.
    clip_norm
        Largest global gradient norm; 0 switches clipping off.
    """

    def __init__(
        self,
        make_module: Callable[[], nn.Module],
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        ranks: Ranks,
        *,
        stage: int,
        precision: str,
        zero: ZeroConfig | None = None,
        micro_batch_size: int = 1,
        grad_accum_steps: int = 1,
        clip_norm: float = 0.0,
    ) -> None:
        import deepspeed

        self.ranks = ranks
        self.stage = stage
        self.precision = precision
        self._zero = ZeroConfig() if zero is None else zero
        self._clip_norm = clip_norm
        module = self._build_sharded(make_module) if stage == 3 else make_module()
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
        if self.has_gradient_sums:
            use_flat_gradients(self._engine.optimizer)

    def _build_sharded(self, make_module: Callable[[], nn.Module]) -> nn.Module:
        """Build the module with each part's weights shared out before the next part is built."""
        from deepspeed import zero

        dtype = self.dtype

        class Init(zero.Init):
            def _zero_init_param(self, parameter: nn.Parameter) -> None:
                # DeepSpeed would draw the numbers on the GPU and in bf16, so that the weights
                # depended on both; drawn as everywhere else, they are only rounded.
                parameter.data = parameter.data.to(dtype)
                super()._zero_init_param(parameter)

        with Init(dtype=dtype, tensor_overrides=[]):
            module = make_module()
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.ranks.device)
        return module

    def _deepspeed_config(self, micro_batch_size: int, grad_accum_steps: int) -> dict[str, Any]:
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": grad_accum_steps,
            # Stage 0 clips in `step`, where the norm is needed anyway.
            "gradient_clipping": self._clip_norm if self.stage > 0 else 0.0,
            "steps_per_print": None,
            "zero_optimization": {
                "stage": self.stage,
                "reduce_bucket_size": self._zero.bucket_elements,
                "allgather_bucket_size": self._zero.bucket_elements,
                "stage3_prefetch_bucket_size": self._zero.bucket_elements,
                "stage3_param_persistence_threshold": _PERSISTENT_ELEMENTS,
                "overlap_comm": self.ranks.device.type == "cuda",
                "offload_optimizer": {
                    "device": "cpu" if self._zero.offload == "optimizer" else "none",
                    "pin_memory": self.ranks.device.type == "cuda",
                },
            },
            # Offloaded, torch's own fused Adam takes the step on the CPU: it is as fast as
            # DeepSpeed's, which would have to be compiled, and gives the same bits as on board.
            "zero_force_ds_cpu_optimizer": False,
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

    def backward(self, loss_sum: Tensor, global_count: Tensor | float, *, is_last: bool) -> None:
        """Add one micro-batch's gradient of (sum of losses over all ranks) / ``global_count``.

        DeepSpeed averages gradients over ranks, hence the factor; its second division, by the
        accumulation steps, is switched off. So the split into ranks and micro-batches cancels.
        A loss that is not finite gives a gradient that is not finite either, on which all ranks
        agree in `step`.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(self.scaled(loss_sum, global_count), scale_wrt_gas=False)

    def scaled(self, loss_sum: Tensor, global_count: Tensor | float) -> Tensor:
        """Return the loss whose gradients, averaged over ranks, are those of the step."""
        scale = torch.as_tensor(self.ranks.world_size / global_count, device=loss_sum.device)
        scale = scale.masked_fill(~torch.isfinite(loss_sum.detach()), torch.nan)
        return loss_sum * scale.to(loss_sum.dtype)

    # ---- gradients that others take, where DeepSpeed keeps sums of them in memory of their own

    @property
    def has_gradient_sums(self) -> bool:
        """Whether `gradient_sums` are there: at stage 1 in bf16, without offload."""
        from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

        return isinstance(self._engine.optimizer, BF16_Optimizer)

    def gradient_sums(self) -> list[Tensor]:
        """Return the fp32 sums that `step` takes; they stay where they are in memory."""
        return self._engine.optimizer.fp32_groups_actual_gradients_flat

    def share_weights(self, twin: nn.Module) -> None:
        """Let another module of the same kind use the memory of the weights."""
        twin.load_state_dict(self.module.state_dict(), assign=True)

    def add_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Add gradients of a `scaled` loss, by parameter name, to the sums."""
        add_gradients(self._engine.optimizer, dict(self.module.named_parameters()), gradients)

    def end_backward(self, *, is_last: bool) -> None:
        """Do what `backward` does behind a micro-batch whose gradients were added."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.allreduce_gradients()

    def step(self, lr: float) -> StepResult:
        """Clip and apply the accumulated gradient, unless its norm is not finite on some rank."""
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            return self._plain_step()
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm())
        if self.has_gradient_sums:
            return StepResult(is_applied=norm.isfinite(), grad_norm=norm)
        is_applied = bool(self._engine.was_step_applied())
        if not is_applied and self._zero.offload == "optimizer" and self.stage < 3:
            # DeepSpeed 0.19.8 forgets these, and every later step would be refused too.
            gradients = self._engine.optimizer.averaged_gradients
            gradients.update(dict.fromkeys(gradients))
        return StepResult(is_applied=torch.tensor(is_applied), grad_norm=norm)

    def _plain_step(self) -> StepResult:
        """Stage 0: gradients are already averaged and whole on every rank, so the norm is local."""
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters]
        norm = nn.utils.get_total_norm(gradients)
        is_finite = bool(norm < float("inf"))
        if is_finite:
            if self._clip_norm > 0:
                # The same formula as in DeepSpeed's other stages.
                shrink = 1.0 / max(1.0, (float(norm) + 1e-6) / self._clip_norm)
                torch._foreach_mul_(gradients, shrink)
            self._engine.step()
        else:
            self._engine.zero_grad()
        return StepResult(is_applied=torch.tensor(is_finite), grad_norm=norm)

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
