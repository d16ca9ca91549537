"""Train the paper's GIN baseline on polymers in one spelling: what `mips rsit` tests.

Legend: G polymers.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from mips_dist.data.batch import collate
from mips_dist.data.block import PolymerBlock
from mips_dist.data.properties import Scaler
from mips_dist.model.gin import GinConfig, GinModel, initial_gin

# The paper's.
LR = 1e-3
BATCH_SIZE = 32


def fit_gin(
    block: PolymerBlock,
    value: npt.NDArray[np.float64],
    config: GinConfig,
    num_epochs: int,
    seed: int,
) -> tuple[GinModel, Scaler]:
    """Train on every polymer of a block for a number of epochs.

    A function of its arguments alone on one machine, where torch has one thread.

    Parameters
    ----------
    block
        At least two polymers: a batch norm needs more than one.
    value
        (G,) labels in the unit of the property.

    Returns
    -------
    The model in evaluation mode, and the scaler that its z-scores belong to.
    """
    scaler = Scaler.fit(value)
    z = torch.from_numpy(scaler.to_z(value).astype(np.float32))
    model = initial_gin(config, seed).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    rng = np.random.default_rng([seed, 1])
    num_batches = math.ceil(len(block) / BATCH_SIZE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout, where the configuration has it
        for _ in range(num_epochs):
            for part in np.array_split(rng.permutation(len(block)), num_batches):
                loss = F.mse_loss(model(collate(block.select(part)))[:, 0], z[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval(), scaler
