"""The formulation for GPUs, run here: whole packs, one attention kernel, compiled layers."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mips_dist.data.batch import FlatBatch, PolymerBatch
from mips_dist.data.padding import Capacity, pad
from mips_dist.model.dropout import LEVELS, dropout, random_words
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.validation import masked_classes
from tests.model.hand import batch_of, masked_atom_model, samples_with_descriptors

ALL_SWITCHES = {"per_head_bias": True, "bond_path_bias": True, "logit_scale": "head"}


def masked_batch(graphs: list[Any], pack_size: int = 64) -> PolymerBatch:
    batch = batch_of(samples_with_descriptors(graphs), pack_size)
    batch.is_masked = torch.arange(len(batch.atom_features)) % 3 == 0
    return batch


def gradients(model: MaskedAtomModel, batch: PolymerBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits and the gradient of each parameter, in training mode."""
    logits = model.train()(batch)
    loss = masked_atom_loss(logits, masked_classes(batch)).loss_sum
    found = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return logits[: batch.num_masked].detach(), dict(zip(names, found, strict=True))


def assert_same(
    left: MaskedAtomModel,
    right: MaskedAtomModel,
    batch: PolymerBatch,
    to: float,
    padded: PolymerBatch | None = None,
) -> None:
    """Outputs and every gradient agree, relative to the largest number of each.

    The left model gets the padded batch, where there is one.
    """
    outputs, grads = gradients(left, batch if padded is None else padded)
    others, other_grads = gradients(right, batch)
    torch.testing.assert_close(outputs, others, rtol=0, atol=to * float(others.abs().max()))
    for name, grad in other_grads.items():
        largest = float(grad.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(
            grads[name], grad, rtol=0, atol=to * largest, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("changes", [{}, ALL_SWITCHES, {"norm": "post"}], ids=str)
@pytest.mark.parametrize("recomputes", [False, True])
def test_packs_equal_atoms(graphs, changes, recomputes):
    model = masked_atom_model(dropout=0.0, **changes).double()
    packed = copy.deepcopy(model)
    packed.encoder.run_packed(is_compiled=False)
    packed.encoder.recomputes_layers = recomputes
    assert_same(packed, model, masked_batch(graphs), 1e-12)


def test_only_the_wanted_atoms_are_computed_and_alike(graphs):
    batch = masked_batch(graphs)
    for is_packed in (False, True):
        model = masked_atom_model().double()
        if is_packed:
            model.encoder.run_packed(is_compiled=False)
        sizes = []
        model.encoder.layers[-1].narrow.register_forward_hook(
            lambda module, inputs, output, sizes=sizes: sizes.append(len(output))
        )
        with torch.no_grad():
            every = model.encode(batch)
            wanted = model.encoder(batch, batch.masked_atoms())
        torch.testing.assert_close(wanted, every[batch.is_masked], rtol=0, atol=1e-12)
        assert sizes == [len(batch.atom_features), int(batch.is_masked.sum())]


def test_packed_dropout_drops_attention_and_keeps_the_mean(graphs):
    model = masked_atom_model(dropout=0.3, num_layers=1)
    attention = model.encoder.layers[0].attention
    attention.is_fused = True
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 64, 16, generator=generator)
    bias = torch.zeros(1, 1, 64, 64)
    with torch.no_grad():
        expected = attention.eval()(rows, bias, None)
        drawn = torch.stack([attention.train()(rows, bias, None) for _ in range(400)])
    assert drawn.std(0).min() > 0
    error = (drawn.mean(0) - expected) / (drawn.std(0) / 400**0.5)
    assert error.abs().max() < 6


def test_padding_changes_nothing(graphs):
    batch = masked_batch(graphs)
    padded = pad(batch, Capacity.over([batch]))
    assert (padded.num_atoms, padded.num_cells) == (len(batch.token_slot), len(batch.cell_slot))
    assert padded.num_masked == batch.num_masked < len(padded.masked_atoms())
    assert sorted(padded.token_slot.tolist()) == list(range(padded.num_packs * padded.pack_size))
    assert len(padded.cell_slot.unique()) == len(padded.cell_slot)
    assert padded.pair_cell.unique().tolist() == list(range(len(padded.cell_slot)))
    for is_packed in (False, True):
        model = masked_atom_model(dropout=0.0, per_head_bias=True).double()
        if is_packed:
            model.encoder.run_packed(is_compiled=False)
        assert_same(model, model, batch, 1e-12, padded)


def test_a_batch_that_is_too_large_does_not_fit(graphs):
    parts = graphs[:20], [*graphs[:10], *graphs[20:30]], graphs[:19]
    small, large, fewer = (replace(masked_batch(part), path_bond_pair=None) for part in parts)
    assert Capacity.over([small]).holds(small)
    assert Capacity.over([large]).holds(large)
    assert not Capacity.over([small]).holds(large)
    assert not Capacity.over([small]).holds(fewer)
    assert not Capacity.over([small]).holds(masked_batch(graphs[:20])), "bonds cannot be padded"


def test_compiled_layers_are_compiled_once_and_equal_the_others(graphs):
    model = masked_atom_model(dropout=0.0, num_layers=4)
    compiled = copy.deepcopy(model)
    compiled.encoder.run_packed(is_compiled=True)
    torch._dynamo.utils.counters.clear()
    for part in (graphs, [*graphs, *graphs[:20]], graphs[5:]):  # other numbers of packs and atoms
        assert_same(compiled, model, masked_batch(part), 2e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_dropout_follows_the_seed_and_keeps_the_mean():
    drop = torch.compile(lambda x, seed: dropout(x, 0.1, True, seed))
    ones = torch.ones(300, 2048)
    one, other, again = (drop(ones, torch.tensor(s, dtype=torch.int32)) for s in (5, 6, 5))
    assert torch.equal(one, again)
    place = torch.arange(ones.numel(), dtype=torch.int32).view(ones.shape)
    words = random_words(place, torch.tensor(5, dtype=torch.int32))
    level = round(0.1 * LEVELS)
    assert torch.equal(one == 0, ((words >> 16) & 0xFFFF) < level)
    spare = (words & 0xFFFF) < level  # kernels take both halves of a word
    error = (0.1 * 0.9 / ones.numel()) ** 0.5
    both, halves = (one == 0) & (other == 0), (one == 0) & spare
    for found, expected in (
        (one == 0, 0.1),
        (other == 0, 0.1),
        (spare, 0.1),
        (both, 0.01),
        (halves, 0.01),
    ):
        assert abs(float(found.double().mean()) - expected) < 5 * error
    for axis in (0, 1):  # no row, no column of its own
        for dropped in (one == 0, spare):
            means = dropped.double().mean(axis)
            expected = (0.1 * 0.9 / ones.shape[axis]) ** 0.5
            assert 0.9 < float(means.std()) / expected < 1.1
    assert float(one.mean()) == pytest.approx(1.0, abs=5 * error)


def test_a_flat_batch_is_the_batch(graphs):
    batch = masked_batch(graphs)
    batch.masked_atom = batch.masked_atoms()
    flat = FlatBatch.of(batch)
    assert flat.data.dtype == torch.uint8
    found = flat.to("cpu")
    for name, value in vars(batch).items():
        other = getattr(found, name)
        if isinstance(value, dict):
            assert value.keys() == other.keys()
            assert all(torch.equal(value[key], other[key]) for key in value), name
        elif isinstance(value, Tensor):
            assert value.dtype == other.dtype, name
            assert torch.equal(value, other), name
        else:
            assert value == other, name
