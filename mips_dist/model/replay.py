"""Forward and backward of a model as two CUDA graphs, recorded once and replayed for every batch.

A step of the base preset asks a GPU for some 500 kernels; asking takes longer than computing them.
A recorded graph is asked for at once. It reads and writes memory at fixed places, so all batches
must have one shape (`data.padding`). Dropout still depends on the generator's seed at each replay.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from mips_dist.data.batch import PolymerBatch

Key = tuple[str, str]  # field, and key where the field is a dict


class Replay:
    """The forward of a model for batches of the shape of the first one.

    Parameters
    ----------
    model
        In training mode, on a GPU.
    forward
        Its forward; recorded at the first batch, after some warm-up.
    """

    def __init__(self, model: nn.Module, forward: Callable[[PolymerBatch], Tensor]) -> None:
        self._model = model
        self._forward = forward
        self._graphed: Any = None
        self._shapes: list[torch.Size] = []

    def __call__(self, batch: PolymerBatch) -> Tensor:
        """Return the output, whose backward pass is replayed too."""
        tensors = tensors_of(batch)
        inputs = list(tensors.values())
        if self._graphed is None:
            record = _OfTensors(self._model, self._forward, batch, list(tensors))
            sample = tuple(tensor.clone() for tensor in inputs)
            self._graphed = torch.cuda.make_graphed_callables(
                record, sample, allow_unused_input=True
            )
            self._shapes = [tensor.shape for tensor in inputs]
        assert [tensor.shape for tensor in inputs] == self._shapes, "batches of one shape only"
        return self._graphed(*inputs)


class _OfTensors(nn.Module):
    """A forward as a function of the tensors of a batch alone."""

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[PolymerBatch], Tensor],
        batch: PolymerBatch,
        keys: list[Key],
    ) -> None:
        super().__init__()
        self.model = model
        self._call, self._batch, self._keys = forward, batch, keys

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._call(with_tensors(self._batch, dict(zip(self._keys, tensors, strict=True))))


def tensors_of(batch: PolymerBatch) -> dict[Key, Tensor]:
    """Return all tensors of a batch."""
    found: dict[Key, Tensor] = {}
    for name in (f.name for f in fields(batch)):
        value = getattr(batch, name)
        if isinstance(value, Tensor):
            found[name, ""] = value
        elif isinstance(value, dict):
            found |= {(name, key): tensor for key, tensor in value.items()}
    return found


def with_tensors(batch: PolymerBatch, tensors: dict[Key, Tensor]) -> PolymerBatch:
    """Return the batch with other tensors."""
    changes: dict[str, Any] = {"descriptors": {}, "descriptor_valid": {}}
    for (name, key), tensor in tensors.items():
        if key:
            changes[name][key] = tensor
        else:
            changes[name] = tensor
    return replace(batch, **changes)
