"""torch-geometric: the exchange format, and the GIN baseline on exact graphs."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from mips_dist.chem.sample import Sample
from mips_dist.data.exchange import from_data, to_data
from mips_dist.model.gin import GinConfig, GinModel, batch_edges
from tests.model.hand import batch_of
from tests.model.reference import copies_needed, unroll


def assert_same(graph, other):
    for field in fields(graph):
        expected, found = getattr(graph, field.name), getattr(other, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected, strict=True, err_msg=field.name)
        else:
            assert found == expected


def test_round_trip_is_exact(graphs):
    for graph in graphs:
        assert_same(graph, from_data(to_data(graph)))


def test_round_trip_through_a_batch(graphs):
    batch = Batch.from_data_list([to_data(g) for g in graphs])
    ours = batch_of([Sample(g) for g in graphs])
    assert torch.equal(batch.pair_index, torch.stack([ours.pair_query, ours.pair_key]))
    assert torch.equal(batch.path_pair, ours.path_pair)
    assert torch.equal(batch.path_atom, ours.path_atom)
    assert torch.equal(batch.path_bond_pair, ours.path_bond_pair)
    for graph, data in zip(graphs, batch.to_data_list(), strict=True):
        assert_same(graph, from_data(data))


def test_edges_that_are_no_pairs_of_directions_are_refused(graphs):
    data = to_data(graphs[-1])
    data.edge_index[:, -1] = data.edge_index[:, 0]
    with pytest.raises(ValueError, match="reversed"):
        from_data(data)


def test_batch_edges_are_the_bonds_of_the_chain(graphs):
    # Self-loops and parallel edges counted: the edges that torch-geometric gets, in another order.
    edges = batch_edges(batch_of([Sample(g) for g in graphs]))
    expected = Batch.from_data_list([to_data(g) for g in graphs]).edge_index
    assert sorted(edges.T.tolist()) == sorted(expected.T.tolist())


def test_gin_on_the_quotient_equals_the_middle_of_an_oligomer(graphs):
    torch.manual_seed(0)
    model = GinModel(GinConfig(hidden_dim=16)).double()
    batch = batch_of([Sample(g) for g in graphs])
    model(batch)  # gives the batch norms a mean and a variance
    model.eval()
    with torch.no_grad():
        outputs = model.encode(batch).split(batch.ptr.diff().tolist())
    for graph, output in zip(graphs, outputs, strict=True):
        copies = copies_needed(graph, reach=3)
        adjacency, size = unroll(graph, copies)
        edges = torch.tensor([(b, a) for a in range(len(adjacency)) for b in adjacency[a]]).T
        with torch.no_grad():
            x = model.embedding(batch_of([Sample(graph)])).repeat(copies, 1)
            for layer in model.layers:
                x = model.activation(layer(x, edges))
        middle = x[size * (copies // 2) :][:size]
        torch.testing.assert_close(output, middle, rtol=1e-9, atol=1e-9, msg=graph.psmiles)


def test_gin_predicts_and_learns(graphs):
    torch.manual_seed(0)
    model = GinModel(GinConfig(hidden_dim=32), num_targets=2)
    batch = batch_of([Sample(g) for g in graphs])
    prediction = model(batch)
    assert prediction.shape == (len(graphs), 2)
    prediction.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("changes", [{"hidden_dim": 0}, {"dropout": 1.0}])
def test_bad_gin_values_name_their_key(changes):
    with pytest.raises(ValueError, match=f"gin.{next(iter(changes))}"):
        GinConfig(**changes)
