"""Atoms to vectors: one linear map of one-hot columns, or one constant for a masked atom.

Legend: N atoms, F input features, D hidden.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mips_dist.data.batch import PolymerBatch

NUM_ATOM_CLASSES = 101  # atomic numbers 1..100 and one class for the others

# Columns of PolymerBatch.atom_features (chem.graph.ATOM_FEATURES) and the classes they get; the
# last class of a column also takes everything beyond it.
ELEMENT, DEGREE, CHARGE, RADICALS, HYBRIDIZATION, AROMATIC, HYDROGENS, RING, ISOTOPE = range(9)
CLASSES = {DEGREE: 12, RADICALS: 6, HYBRIDIZATION: 6, HYDROGENS: 6}
NUM_RING_CLASSES = 21  # in no ring; size of the smallest ring up to 19; 20 and more

# Standard atomic weights in g/mol by atomic number, 0..118.
ATOMIC_WEIGHTS = (
    *(0.0, 1.008, 4.003, 6.941, 9.012, 10.812, 12.011, 14.007, 15.999, 18.998, 20.18, 22.99),
    *(24.305, 26.982, 28.086, 30.974, 32.067, 35.453, 39.948, 39.098, 40.078, 44.956, 47.867),
    *(50.944, 51.996, 54.938, 55.845, 58.933, 58.693, 63.546, 65.39, 69.723, 72.61, 74.922),
    *(78.96, 79.904, 83.8, 85.468, 87.62, 88.906, 91.224, 92.906, 95.94, 98.0, 101.07, 102.906),
    *(106.42, 107.868, 112.412, 114.818, 118.711, 121.76, 127.6, 126.904, 131.29, 132.905),
    *(137.328, 138.906, 140.116, 140.908, 144.24, 145.0, 150.36, 151.964, 157.25, 158.925, 162.5),
    *(164.93, 167.26, 168.934, 173.04, 174.967, 178.49, 180.948, 183.84, 186.207, 190.23, 192.217),
    *(195.078, 196.967, 200.59, 204.383, 207.2, 208.98, 209.0, 210.0, 222.0, 223.0, 226.0, 227.0),
    *(232.038, 231.036, 238.029, 237.0, 244.0, 243.0, 247.0, 247.0, 251.0, 252.0, 257.0, 258.0),
    *(259.0, 262.0, 267.0, 268.0, 269.0, 270.0, 269.0, 278.0, 281.0, 281.0, 285.0, 284.0, 289.0),
    *(288.0, 293.0, 292.0, 294.0),
)
MASS_SCALE = 0.01  # the paper's; brings g/mol near 1


def atom_class(atom_features: Tensor) -> Tensor:
    """Return the class of each atom, which is also the target of masked-atom pre-training.

    Parameters
    ----------
    atom_features
        (N, 9) long.

    Returns
    -------
    (N,) long in 0..100. A star (atomic number 0) is one of the others, as in the released code.
    """
    return (atom_features[:, ELEMENT].clamp(0, NUM_ATOM_CLASSES) - 1) % NUM_ATOM_CLASSES


class AtomEmbedding(nn.Module):
    """The input layer x0 = W h + b; h is a row of one-hot columns and two scalars.

    Parameters
    ----------
    hidden_dim
        D.
    backbone_embedding
        Whether backbone atoms get a vector of their own added.
    ring_embedding
        Whether the smallest ring of an atom is an input.
    """

    atomic_weights: Tensor
    first_column: Tensor

    def __init__(self, hidden_dim: int, backbone_embedding: bool, ring_embedding: bool) -> None:
        super().__init__()
        self.backbone_embedding = backbone_embedding
        self.classes = CLASSES | ({RING: NUM_RING_CLASSES} if ring_embedding else {})
        sizes = [NUM_ATOM_CLASSES, *self.classes.values()]
        # After the one-hot columns: aromatic, charge, mass, backbone where it is on, masked.
        self.num_one_hot = sum(sizes)
        self.num_columns = self.num_one_hot + (5 if backbone_embedding else 4)
        self.linear = nn.Linear(self.num_columns, hidden_dim)
        first = torch.tensor([0, *accumulate(sizes[:-1])])
        self.register_buffer("first_column", first, persistent=False)
        weights = torch.tensor(ATOMIC_WEIGHTS)
        self.register_buffer("atomic_weights", weights, persistent=False)

    def forward(self, batch: PolymerBatch) -> Tensor:
        """Return x0 (N, D)."""
        weight = self.linear.weight
        rows_NF = self.rows(batch).to(weight.dtype)
        # A GPU's fast products want rows of a multiple of 16 bytes.
        padding = 0, -self.num_columns % 8
        return F.linear(F.pad(rows_NF, padding), F.pad(weight, padding), self.linear.bias)

    def rows(self, batch: PolymerBatch) -> Tensor:
        """Return the input rows h (N, F) float32.

        The row of a masked atom is one in its last column and zero elsewhere, so every masked atom
        becomes the same learned constant whatever it is.
        """
        atoms = batch.atom_features
        clipped = [atoms[:, column].clamp(0, n - 1) for column, n in self.classes.items()]
        hot = torch.stack([atom_class(atoms), *clipped], dim=1) + self.first_column
        rows_NF = torch.zeros(len(atoms), self.num_columns, device=atoms.device)
        rows_NF.scatter_(1, hot, 1.0)
        single = [atoms[:, AROMATIC], atoms[:, CHARGE], self._mass(atoms)]
        if self.backbone_embedding:
            single.append(batch.is_backbone)
        rows_NF[:, self.num_one_hot : -1] = torch.stack([x.float() for x in single], dim=1)
        if batch.is_masked is not None:
            rows_NF.masked_fill_(batch.is_masked[:, None], 0.0)
            rows_NF[:, -1] = batch.is_masked
        return rows_NF

    def _mass(self, atoms: Tensor) -> Tensor:
        """Return the scaled mass (N,): the isotope's mass number where one is given."""
        natural = self.atomic_weights[atoms[:, ELEMENT].clamp(0, len(ATOMIC_WEIGHTS) - 1)]
        isotope = atoms[:, ISOTOPE]
        return MASS_SCALE * torch.where(isotope > 0, isotope.to(natural.dtype), natural)
