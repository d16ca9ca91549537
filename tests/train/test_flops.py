"""The work that speeds are measured by is what the products of the model really do."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mips_dist.chem.sample import featurize
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.train.flops import forward_flops, matmul_rate, own_clock
from tests.model.hand import batch_of, hand_block, masked_atom_model, samples_with_descriptors

POLYMERS = ["*CC(*)c1ccccc1", "*CCO*", "*C*", "*NCCCC(=O)*"]


def masked(batch: PolymerBatch, count: int) -> PolymerBatch:
    return replace(batch, is_masked=torch.arange(len(batch.atom_features)) < count)


def counted(model: MaskedAtomModel, batch: PolymerBatch) -> int:
    """Torch's count of the products, without the input layer, the biases and dense attention."""
    with FlopCounterMode(display=False) as counter:
        model(batch)
    counts = counter.get_flop_counts()
    total = sum(counts["Global"].values())
    for name in ("encoder.embedding", "encoder.bias"):
        total -= sum(counts[f"MaskedAtomModel.{name}"].values())
    for name, by_operator in counts.items():
        if re.fullmatch(r".*layers\.\d+\.attention", name):
            linear = sum(counts[f"{name}.{part}"][torch.ops.aten.addmm] for part in ("qkv", "out"))
            total -= sum(by_operator.values()) - linear
    return total


@pytest.mark.parametrize("descriptors", [[], ["rdkit_2d", "atom_pair_3d"]])
def test_work_is_what_torch_counts(descriptors):
    model = masked_atom_model(descriptors=descriptors, ffn_dim=48, num_layers=3)
    samples = samples_with_descriptors([s.graph for s in featurize(POLYMERS, "topology", 2)])
    batch = masked(batch_of(samples, pack_size=32), 7)
    # An atom meets those that it attends to, once in q . k and once in the weighted sum.
    width = model.config.hidden_dim
    attention = 3 * len(batch.cell_slot) * 4 * width
    # An atom meets the descriptors of its polymer: sums of products that are no matrix product.
    fusion = len(descriptors) * batch.num_masked * 2 * (width // 4 + width)
    assert forward_flops(model.config, batch) == counted(model, batch) + attention + fusion


def test_work_by_hand():
    # *C* and *CO*: three atoms, of which one is masked; C-C, C-C, C-O, O-C, O-O attend. After its
    # attention the second and last layer goes on with the masked atom alone.
    config = masked_atom_model(descriptors=[]).config
    batch = masked(collate(hand_block()), 1)
    inputs = 3 * 2 * 3 * 16 * 16 + 5 * 2 * 2 * 16
    outputs = 2 * (16 * 16 + 2 * 16 * 32)
    assert forward_flops(config, batch) == 2 * inputs + (3 + 1) * outputs + 2 * 16 * (16 + 101)


def test_padding_is_no_work():
    config = masked_atom_model(descriptors=[]).config
    tight, loose = (masked(collate(hand_block(), size), 1) for size in (4, 512))
    assert forward_flops(config, tight) == forward_flops(config, loose)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_is_the_work_of_a_product_over_its_time(dtype):
    device = torch.device("cpu")
    ticks = iter(range(100))
    # A clock by which each product takes a second.
    rate = matmul_rate(dtype, lambda: float(next(ticks)), device, count=1)
    assert rate == 2 * 2048**3
    before = torch.get_rng_state()
    assert 1e8 < matmul_rate(dtype, own_clock(device), device, count=1) < 1e14
    assert torch.equal(torch.get_rng_state(), before), "the run's random numbers are left alone"


def test_rate_is_measured_in_bounded_time():
    ticks = iter(range(100))
    matmul_rate(torch.float32, lambda: float(next(ticks)), torch.device("cpu"), 7, limit=4.0)
    assert next(ticks) < 3 * 3, "two products were enough"
