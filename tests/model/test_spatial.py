"""Fusion of descriptor groups: what is absent takes no part."""

import torch

from mips_dist.model.spatial import DescriptorFusion
from tests.model.hand import batch_of, randomized, samples_with_descriptors

GROUPS = ["rdkit_2d", "atom_pair_3d"]


def fusion_inputs(graphs):
    batch = batch_of(samples_with_descriptors(graphs))
    x = torch.randn(len(batch.atom_features), 16, generator=torch.Generator().manual_seed(0))
    return randomized(DescriptorFusion(16, GROUPS)), x, batch


def test_no_group_leaves_the_atoms_unchanged(graphs):
    fusion, x, batch = fusion_inputs(graphs)
    valid = batch.descriptor_valid["rdkit_2d"][batch.batch_index]
    with torch.no_grad():
        fused = fusion(x, batch)
    assert torch.equal(fused[~valid], x[~valid])
    assert (fused[valid] != x[valid]).any(dim=1).all()


def test_absent_values_do_not_matter(graphs):
    fusion, x, batch = fusion_inputs(graphs)
    with torch.no_grad():
        before = fusion(x, batch)
        for name in GROUPS:
            batch.descriptors[name][~batch.descriptor_valid[name]] = torch.nan
        after = fusion(x, batch)
    assert torch.equal(before, after)


def test_one_group_gets_the_whole_weight(graphs):
    fusion, x, batch = fusion_inputs(graphs)
    only = batch.descriptor_valid["rdkit_2d"] & ~batch.descriptor_valid["atom_pair_3d"]
    atoms = only[batch.batch_index]
    with torch.no_grad():
        value = fusion.value["rdkit_2d"](batch.descriptors["rdkit_2d"])[batch.batch_index]
        torch.testing.assert_close(fusion(x, batch)[atoms], (x + 0.5 * value)[atoms])


def test_absent_groups_get_no_gradient(graphs):
    fusion, x, batch = fusion_inputs(graphs)
    for valid in batch.descriptor_valid.values():
        valid.zero_()
    fusion(x, batch).sum().backward()
    gradients = [p.grad for p in fusion.parameters() if p.grad is not None]
    assert all((g == 0).all() for g in gradients)
