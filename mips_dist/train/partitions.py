"""Where DeepSpeed keeps each parameter's fp32 weight and Adam moments, whatever the ZeRO stage.

Every stage gives this rank's optimizer some flat fp32 tensors; a parameter owns a stretch of one of
them (or, at stage 0, is one itself). `_fragment` finds that stretch; the rest is the same for all.
Imports no DeepSpeed: it reads the attributes of the engine that it is given.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class _Fragment:
    """``flat[flat_start:][:size]`` holds ``parameter.flatten()[start:][:size]``."""

    flat: Tensor
    flat_start: int
    start: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StateBytes:
    """Bytes of training state that one rank holds.

    ``optimizer`` is Adam's moments, ``master`` the optimizer's own copy of the weights where
    DeepSpeed keeps one beside them.
    """

    optimizer: int
    master: int
    gradients: int
    parameters: int


def _stage(engine: Any) -> int:
    return int(engine.zero_optimization_stage())


def _parameters(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in engine.module.named_parameters() if p.requires_grad)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter; ZeRO-3 empties the tensor itself."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _fragment(engine: Any, parameter: nn.Parameter) -> _Fragment | None:
    """Find this rank's stretch of a parameter, or None when all of it is on other ranks."""
    stage = _stage(engine)
    if stage == 0:
        return _Fragment(parameter, 0, 0, parameter.numel())
    if stage == 3:
        optimizer = engine.optimizer
        group, flat_start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = int(size) * dist.get_rank()
        # The last rank's partition may end in padding.
        size = min(int(size), _shape(parameter).numel() - start)
        if size <= 0:
            return None
        return _Fragment(
            optimizer.fp32_partitioned_groups_flat[group], int(flat_start), start, size
        )
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    flat = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"][0]
    inside, outside = mapping.lp_fragment_address, mapping.hp_fragment_address
    return _Fragment(flat, outside.start, inside.start, inside.numel)


def _flats(engine: Any) -> list[Tensor]:
    """List the tensors that this rank's optimizer updates."""
    if _stage(engine) == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    groups = engine.basic_optimizer.param_groups
    return [parameter for group in groups for parameter in group["params"]]


def _stored(engine: Any, fragment: _Fragment, key: str) -> Tensor | None:
    """View this rank's stretch of a weight (``"weight"``) or moment; None before the first step."""
    tensor = fragment.flat
    if key != "weight":
        state = engine.basic_optimizer.state.get(fragment.flat, {})
        if key not in state:
            return None
        tensor = state[key]
    return tensor.detach().reshape(-1).narrow(0, fragment.flat_start, fragment.size)


def gather(engine: Any, rank: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every parameter's fp32 weight and moments, whole, on rank 0 (see engine.full_state)."""
    for name, parameter in _parameters(engine):
        fragment = _fragment(engine, parameter)
        whole: dict[str, Tensor] = {}
        for key in ("weight", *MOMENTS):
            buffer = torch.zeros(
                _shape(parameter).numel(), dtype=torch.float32, device=engine.device
            )
            stored = None if fragment is None else _stored(engine, fragment, key)
            if stored is not None and fragment is not None:
                buffer.narrow(0, fragment.start, fragment.size).copy_(stored)
            if _stage(engine) > 0:
                # Every element is non-zero on one rank only, so the sum is that element, exactly.
                dist.reduce(buffer, dst=0)
            if rank == 0:
                whole[key] = buffer.view(_shape(parameter)).cpu()
        yield name, whole


def adam_steps(engine: Any) -> int:
    """Return the number of steps that Adam has applied; every parameter has the same."""
    counts = {int(s["step"]) for s in engine.basic_optimizer.state.values() if "step" in s}
    assert len(counts) <= 1, f"parameters disagree on Adam's step: {sorted(counts)}"
    return counts.pop() if counts else 0


@torch.no_grad()
def scatter(engine: Any, read: Callable[[str], Mapping[str, Tensor]], adam_steps: int) -> None:
    """Write whole weights and moments back into this rank's partitions."""
    optimizer = engine.basic_optimizer
    is_fused = bool(optimizer.defaults.get("fused"))
    for flat in _flats(engine):
        # Adam makes its state at its first step; a loaded run needs it before.
        step_device = flat.device if is_fused else torch.device("cpu")
        optimizer.state[flat] = {
            "step": torch.tensor(float(adam_steps), dtype=torch.float32, device=step_device),
            **{key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS},
        }
    for name, parameter in _parameters(engine):
        fragment = _fragment(engine, parameter)
        if fragment is None:
            continue
        whole = read(name)
        for key in ("weight", *MOMENTS):
            part = whole[key].reshape(-1).narrow(0, fragment.start, fragment.size)
            stored = _stored(engine, fragment, key)
            assert stored is not None
            stored.copy_(part)
    _refresh_weights(engine)


def _refresh_weights(engine: Any) -> None:
    """Copy the optimizer's fp32 weights into the weights that the forward uses."""
    if _stage(engine) in (1, 2):
        engine.optimizer.update_lp_params()
    elif _stage(engine) == 3:
        zero3 = engine.optimizer
        zero3._partition_all_parameters()
        for group in range(len(zero3.fp16_groups)):
            zero3._reassign_or_swap_out_partitioned_parameters(group)
        if zero3.persistent_parameters:
            zero3.persistent_parameters[0].all_gather(zero3.persistent_parameters)


def _tensors(*sources: Any) -> Iterator[Tensor]:
    """Walk nested dicts, lists and tuples for tensors."""
    for source in sources:
        if isinstance(source, Tensor):
            yield source
        elif isinstance(source, Mapping):
            yield from _tensors(*source.values())
        elif isinstance(source, list | tuple):
            yield from _tensors(*source)


def _bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Sum the memory behind tensors, every storage once; ``seen`` storages count nothing."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def measure(engine: Any) -> StateBytes:
    """Add up the storages behind this rank's training state, by kind.

    Aliases count once, for the first kind of: parameters, gradients, master copy, moments.
    """
    optimizer = engine.optimizer
    parameters = list(engine.module.parameters())
    flats = _flats(engine)
    seen: set[int] = set()
    weights = _bytes(
        _tensors(
            [p.data for p in parameters],
            [getattr(p, "ds_tensor", None) for p in parameters],
            getattr(optimizer, "bit16_groups_flat", None),
            getattr(optimizer, "bf16_groups_flat", None),
            getattr(optimizer, "fp16_partitioned_groups_flat", None),
        ),
        seen,
    )
    gradients = _bytes(
        _tensors(
            [p.grad for p in parameters],
            [getattr(p, "grad_accum", None) for p in parameters],
            [f.grad for f in flats],
            getattr(optimizer, "averaged_gradients", None),
            getattr(optimizer, "all_grad_tensors", None),
            getattr(optimizer, "grad_partitions_flat_buffer", None),
            getattr(optimizer, "fp32_groups_gradients_flat", None),
        ),
        seen,
    )
    master = _bytes(flats, seen)
    moments = _bytes(_tensors(list(engine.basic_optimizer.state.values())), seen)
    return StateBytes(optimizer=moments, master=master, gradients=gradients, parameters=weights)
