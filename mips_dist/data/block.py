"""Many polymers as one set of flat arrays: the unit of storage, selection and batching. No torch.

Legend: G polymers, N atoms, B bonds, P pairs, T path atoms, S path bonds, M coordinates (heavy
atoms and hydrogens), each summed over the polymers of the block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # a block is read where RDKit is not installed
    from mips_dist.chem.descriptors import DescriptorGroup
    from mips_dist.chem.sample import Sample

Array = npt.NDArray[Any]

# Count field -> the ragged fields that it measures. The ragged axis is the last one of the index
# fields with two rows, else the first.
RAGGED_FIELDS: dict[str, tuple[str, ...]] = {
    "num_atoms": ("atom_features", "is_backbone"),
    "num_pairs": ("pair_index", "pair_hops", "pair_shift"),
    "num_path_atoms": ("path_pair", "path_position", "path_atom", "path_weight"),
    "num_bonds": ("edge_index", "bond_type", "cell_shift"),
    "num_path_bonds": (
        "path_bond_pair",
        "path_bond_position",
        "path_bond_type",
        "path_bond_weight",
    ),
    "num_coordinates": ("coordinates", "is_hydrogen"),
}
# Counts whose fields every batch takes; see `_interleave`.
_TOGETHER = ("num_atoms", "num_pairs", "num_path_atoms")
_INTERLEAVED = tuple(name for count in _TOGETHER for name in RAGGED_FIELDS[count])
TWO_ROW_FIELDS = frozenset({"edge_index", "pair_index"})
# Bonds, and what only a model with bond_path_bias reads: all of them are there, or none.
BOND_FIELDS = (
    "pair_shift",
    *("num_bonds", *RAGGED_FIELDS["num_bonds"]),
    *("num_path_bonds", *RAGGED_FIELDS["num_path_bonds"]),
)
CONFORMER_FIELDS = ("num_coordinates", "coordinates", "is_hydrogen", "conformer_status")
NO_CONFORMER = 255  # conformer_status of a polymer that has no coordinates


@dataclass(kw_only=True)
class PolymerBlock:
    """The arrays of G polymers, one after the other; indices are local to their polymer.

    Graph fields are those of `mips_dist.chem.graph.PolymerGraph`, concatenated, with the same
    dtypes, or narrower integers in a block that was read from a shard. The bond fields are None
    where they were not read, the conformer fields where they were not made or not read.
    """

    psmiles: list[str]  # G canonical spellings
    row: Array  # (G,) int64, row of the input file, from 0

    num_atoms: Array  # (G,) int32
    num_pairs: Array  # (G,) int32
    num_path_atoms: Array  # (G,) int32

    atom_features: Array  # (N, 9) int16
    is_backbone: Array  # (N,) bool
    pair_index: Array  # (2, P) int16
    pair_hops: Array  # (P,) uint8
    path_pair: Array  # (T,) int32
    path_position: Array  # (T,) uint8
    path_atom: Array  # (T,) int16
    path_weight: Array  # (T,) float32

    pair_shift: Array | None = None  # (P,) int8
    num_bonds: Array | None = None  # (G,) int32
    edge_index: Array | None = None  # (2, B) int16
    bond_type: Array | None = None  # (B,) uint8
    cell_shift: Array | None = None  # (B,) int8
    num_path_bonds: Array | None = None  # (G,) int32
    path_bond_pair: Array | None = None  # (S,) int32
    path_bond_position: Array | None = None  # (S,) uint8
    path_bond_type: Array | None = None  # (S,) uint8
    path_bond_weight: Array | None = None  # (S,) float32

    # Per group: (G, width) float16 for real values, (G, width / 8) uint8 packed bits. The values
    # of a polymer whose descriptor_valid is False are zeros that mean nothing.
    descriptors: dict[str, Array] = field(default_factory=dict)
    descriptor_valid: dict[str, Array] = field(default_factory=dict)  # (G,) bool

    num_coordinates: Array | None = None  # (G,) int32
    coordinates: Array | None = None  # (M, 3) float32, angstrom
    is_hydrogen: Array | None = None  # (M,) bool
    conformer_status: Array | None = None  # (G,) uint8, chem.conformer's status or NO_CONFORMER

    def __len__(self) -> int:
        """Return the number of polymers."""
        return len(self.psmiles)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its arrays, and of its spellings about."""
        values = [getattr(self, f.name) for f in fields(self)]
        values += [*self.descriptors.values(), *self.descriptor_valid.values()]
        arrays = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        return arrays + 128 * len(self)

    @cached_property
    def offsets(self) -> dict[str, Array]:
        """First ragged row of each polymer: count field -> (G + 1,) int64."""
        return {
            name: np.concatenate([[0], np.cumsum(getattr(self, name), dtype=np.int64)])
            for name in RAGGED_FIELDS
            if getattr(self, name) is not None
        }

    def bonds(self) -> dict[str, Array]:
        """Return the bond fields by name; ValueError where they were not read."""
        values = {name: getattr(self, name) for name in BOND_FIELDS}
        if any(value is None for value in values.values()):
            raise ValueError("the block was read without bonds")
        return values

    def select(self, indices: npt.ArrayLike) -> "PolymerBlock":
        """Return the polymers at `indices`, in that order; an index may repeat.

        Parameters
        ----------
        indices
            (K,) integers in [0, G).
        """
        chosen = np.asarray(indices, dtype=np.int64)
        values: dict[str, Any] = {
            "psmiles": [self.psmiles[i] for i in chosen.tolist()],
            "row": self.row[chosen],
            "descriptors": {name: x[chosen] for name, x in self.descriptors.items()},
            "descriptor_valid": {name: x[chosen] for name, x in self.descriptor_valid.items()},
        }
        if self.conformer_status is not None:
            values["conformer_status"] = self.conformer_status[chosen]
        for count_name, offsets in self.offsets.items():
            counts = getattr(self, count_name)[chosen]
            values[count_name] = counts
            gathered = ragged_rows(offsets[chosen], counts)
            parts = {name: getattr(self, name) for name in RAGGED_FIELDS[count_name]}
            values |= _gather({n: x for n, x in parts.items() if x is not None}, gathered)
        return PolymerBlock(**values)


def _gather(ragged: dict[str, Array], rows: Array) -> dict[str, Array]:
    """Return some rows of ragged fields of equal length."""
    records = next(iter(ragged.values())).base
    if isinstance(records, np.ndarray) and records.dtype.names:
        laid_out = _views(records)
        if laid_out.keys() == ragged.keys() and all(
            x.__array_interface__ == laid_out[name].__array_interface__
            for name, x in ragged.items()
        ):
            # As `_interleave` laid them out: one row of memory holds a row of every field.
            whole = records.view(np.uint8).reshape(-1, records.dtype.itemsize)
            return _views(np.take(whole, rows, axis=0).view(records.dtype)[:, 0])
    return {name: np.take(x, rows, axis=ragged_axis(name)) for name, x in ragged.items()}


def _views(records: Array) -> dict[str, Array]:
    """Return the fields of a structured array as ragged fields."""
    names = records.dtype.names or ()
    return {name: records[name].T if ragged_axis(name) else records[name] for name in names}


def _interleave(parts: dict[str, list[Array]]) -> dict[str, Array]:
    """Put parts of ragged fields one after the other, all fields of a row side by side.

    Batches are made of polymers from all over the memory, and each place costs a wait for it: a
    half of the time of `select` where every field is an array of its own.
    """
    formats = {}
    for name, arrays in parts.items():
        shape = [size for axis, size in enumerate(arrays[0].shape) if axis != ragged_axis(name)]
        formats[name] = np.dtype((np.result_type(*arrays), tuple(shape)))
    # Large items first, so that all lie aligned; a power of two is copied in one piece.
    names = sorted(formats, key=lambda name: -formats[name].base.itemsize)
    ends = np.cumsum([formats[name].itemsize for name in names]).tolist()
    size = 1 << (ends[-1] - 1).bit_length()
    dtype = np.dtype(
        {
            "names": names,
            "formats": [formats[name] for name in names],
            "offsets": [0, *ends[:-1]],
            "itemsize": size,
        }
    )
    lengths = [array.shape[ragged_axis(names[0])] for array in parts[names[0]]]
    fields = _views(np.zeros(sum(lengths), dtype))
    for name in names:
        np.concatenate(parts[name], axis=ragged_axis(name), out=fields[name])
    return fields


def ragged_axis(name: str) -> int:
    """Return the axis of a ragged field that runs over the polymers' rows."""
    return 1 if name in TWO_ROW_FIELDS else 0


def ragged_rows(starts: Array, counts: Array) -> Array:
    """Return the rows start, start + 1, ... of every polymer, one polymer after the other.

    Parameters
    ----------
    starts, counts
        (K,) integers.

    Returns
    -------
    (sum of counts,) int64.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    rows = np.repeat(starts - (ends - counts), counts)
    rows += np.arange(len(rows))
    return rows


def stack(
    samples: "Sequence[Sample]",
    rows: Sequence[int],
    groups: "Iterable[DescriptorGroup]" = (),
    with_conformer: bool | None = None,
) -> PolymerBlock:
    """Put featurized polymers into one block.

    Parameters
    ----------
    samples
        At least one polymer.
    rows
        Row of the input file of each.
    groups
        Descriptor groups that the block must have even if no polymer in it has the values; the
        groups that some polymer has are always there.
    with_conformer
        Whether the block has the conformer fields; None: if some polymer has a conformer.
    """
    graphs = [sample.graph for sample in samples]
    measured_by = {
        "num_atoms": "is_backbone",
        "num_bonds": "bond_type",
        "num_pairs": "pair_shift",
        "num_path_atoms": "path_pair",
        "num_path_bonds": "path_bond_pair",
    }
    values: dict[str, Any] = {}
    for count_name, measure in measured_by.items():
        values[count_name] = np.array([len(getattr(g, measure)) for g in graphs], dtype=np.int32)
        for name in RAGGED_FIELDS[count_name]:
            arrays = [getattr(g, name) for g in graphs]
            values[name] = np.concatenate(arrays, axis=ragged_axis(name))
    if with_conformer is None:
        with_conformer = any(sample.conformer is not None for sample in samples)
    if with_conformer:
        values |= _stack_conformers(samples)
    descriptors, valid = _stack_descriptors(samples, groups)
    return PolymerBlock(
        psmiles=[g.psmiles for g in graphs],
        row=np.asarray(rows, dtype=np.int64),
        descriptors=descriptors,
        descriptor_valid=valid,
        **values,
    )


def _stack_conformers(samples: "Sequence[Sample]") -> dict[str, Array]:
    conformers = [sample.conformer for sample in samples]
    found = [c for c in conformers if c is not None]
    none = np.zeros((0, 3), np.float32)
    return {
        "num_coordinates": np.array(
            [0 if c is None else len(c.coordinates) for c in conformers], dtype=np.int32
        ),
        "coordinates": np.concatenate([none, *(c.coordinates for c in found)], dtype=np.float32),
        "is_hydrogen": np.concatenate([np.zeros(0, bool), *(c.is_hydrogen for c in found)]),
        "conformer_status": np.array(
            [NO_CONFORMER if c is None else c.status for c in conformers], dtype=np.uint8
        ),
    }


def _stack_descriptors(
    samples: "Sequence[Sample]", groups: "Iterable[DescriptorGroup]"
) -> tuple[dict[str, Array], dict[str, Array]]:
    # Name -> (width stored, dtype stored). A group of bits comes as uint8 of 0 and 1.
    layout: dict[str, tuple[int, type]] = {
        g.name: (g.width // 8, np.uint8) if g.kind == "bits" else (g.width, np.float16)
        for g in groups
    }
    for sample in samples:
        for name, value in sample.descriptors.items():
            is_real = np.issubdtype(value.dtype, np.floating)
            stored = (len(value), np.float16) if is_real else (-(-len(value) // 8), np.uint8)
            layout.setdefault(name, stored)
    descriptors: dict[str, Array] = {}
    valid: dict[str, Array] = {}
    for name in sorted(layout):
        width, dtype = layout[name]
        has = np.array([name in sample.descriptors for sample in samples])
        values: Array = np.zeros((len(samples), width), dtype)
        if has.any():
            known = np.stack([s.descriptors[name] for s in samples if name in s.descriptors])
            values[has] = np.packbits(known, axis=1) if dtype is np.uint8 else known
        descriptors[name], valid[name] = values, has
    return descriptors, valid


def concatenate(blocks: Sequence[PolymerBlock]) -> PolymerBlock:
    """Put blocks one after the other.

    A descriptor group or conformer that only some blocks have is marked as not available for the
    polymers of the others; bonds are there only if every block has them.
    """
    if len(blocks) == 1:
        return blocks[0]
    values: dict[str, Any] = {"psmiles": [p for block in blocks for p in block.psmiles]}
    has_conformer = any(block.conformer_status is not None for block in blocks)
    has_bonds = all(block.num_bonds is not None for block in blocks)
    for f in fields(PolymerBlock):
        if f.name in CONFORMER_FIELDS:
            if has_conformer:
                values[f.name] = np.concatenate([_conformer_part(b, f.name) for b in blocks])
        elif f.name in BOND_FIELDS and not has_bonds:
            continue
        elif f.name not in (*_INTERLEAVED, "psmiles", "descriptors", "descriptor_valid"):
            parts: list[Array] = [getattr(block, f.name) for block in blocks]
            values[f.name] = np.concatenate(parts, axis=ragged_axis(f.name))
    for count_name in _TOGETHER:
        names = [n for n in RAGGED_FIELDS[count_name] if has_bonds or n not in BOND_FIELDS]
        values |= _interleave({n: [getattr(block, n) for block in blocks] for n in names})
    layout = {name: x for block in blocks for name, x in block.descriptors.items()}
    values["descriptors"] = {
        name: np.concatenate(
            [
                block.descriptors.get(name, np.zeros((len(block), x.shape[1]), x.dtype))
                for block in blocks
            ]
        )
        for name, x in sorted(layout.items())
    }
    values["descriptor_valid"] = {
        name: np.concatenate(
            [block.descriptor_valid.get(name, np.zeros(len(block), bool)) for block in blocks]
        )
        for name in sorted(layout)
    }
    return PolymerBlock(**values)


def _conformer_part(block: PolymerBlock, name: str) -> Array:
    """Return a conformer field of a block; one without conformers has none for each polymer."""
    if block.conformer_status is not None:
        part: Array = getattr(block, name)
        return part
    return {
        "num_coordinates": np.zeros(len(block), np.int32),
        "coordinates": np.zeros((0, 3), np.float32),
        "is_hydrogen": np.zeros(0, bool),
        "conformer_status": np.full(len(block), NO_CONFORMER, np.uint8),
    }[name]
