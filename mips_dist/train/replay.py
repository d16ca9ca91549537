"""Loss and gradients of a micro-batch as one CUDA graph, recorded once and replayed for all others.

A step of the base preset asks a GPU for some 500 kernels; asking takes longer than computing them.
A recorded graph is asked for at once. It reads and writes memory at fixed places, so all batches
must have one shape (`data.padding`).

What is recorded runs on a twin of the model: a module of its own on the weights' memory, of whose
parameters nobody but this file takes gradients. DeepSpeed has touched the parameters of the model
itself, and their gradient accumulators belong to the default stream, which must not be recorded.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mips_dist.data.batch import PolymerBatch
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.validation import masked_classes

_WARM_UP = 3  # runs before the one that is recorded: layers are compiled, kernels chosen


class Replay:
    """Loss and gradients of padded batches.

    Dropout follows the generator's seed at each replay.

    Parameters
    ----------
    trainer
        Whose engine keeps sums of the gradients apart from them.
    twin
        On the memory of its weights; see `TrainEngine.share_weights`.
    is_compiled
        Whether forward and backward are compiled, for the shape of the first batch.
    """

    def __init__(self, trainer: TrainEngine, twin: MaskedAtomModel, is_compiled: bool) -> None:
        self._trainer = trainer
        self._twin = twin.train()
        self._loss: Callable[[PolymerBatch], tuple[Tensor, Tensor]] = self._loss_of
        if is_compiled:
            self._loss = torch.compile(self._loss_of, dynamic=False)
        self._graph: tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, batch: PolymerBatch, global_count: Tensor) -> tuple[Tensor, Tensor]:
        """Add a micro-batch's gradients to the sums; see `TrainEngine.backward`.

        Parameters
        ----------
        batch
            Padded, on the GPU, of the shape of the first one.
        global_count
            () masked atoms of the step over all ranks.

        Returns
        -------
        Summed loss and number of correct atoms (), which the next call overwrites.
        """
        if self._graph is None:
            self._graph = self._record(batch, global_count)
        graph, inputs, result = self._graph
        for place, tensor in zip(inputs, [*batch.tensors(), global_count], strict=True):
            place.copy_(tensor)
        graph.replay()
        return result

    def _record(
        self, batch: PolymerBatch, global_count: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, Tensor]]:
        """Return the graph, the places of its inputs, and its results."""
        batch, global_count = batch.map(torch.clone), global_count.clone()
        sums = [total.clone() for total in self._trainer.gradient_sums()]
        seeded = torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.compute(batch, global_count)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may talk to the GPU meanwhile: NCCL's watches its work.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = self.compute(batch, global_count)
        for total, before in zip(self._trainer.gradient_sums(), sums, strict=True):
            total.copy_(before)
        torch.cuda.set_rng_state(seeded)
        return graph, [*batch.tensors(), global_count], result

    def compute(self, batch: PolymerBatch, global_count: Tensor) -> tuple[Tensor, Tensor]:
        """Do what is recorded: as `__call__`, on any device."""
        loss_sum, num_correct = self._loss(batch)
        names, parameters = zip(*self._twin.named_parameters(), strict=True)
        scaled = self._trainer.scaled(loss_sum, global_count)
        gradients = torch.autograd.grad(scaled, parameters)
        self._trainer.add_gradients(dict(zip(names, gradients, strict=True)))
        return loss_sum.detach(), num_correct

    def _loss_of(self, batch: PolymerBatch) -> tuple[Tensor, Tensor]:
        loss = masked_atom_loss(self._twin(batch), masked_classes(batch))
        return loss.loss_sum, loss.num_correct
