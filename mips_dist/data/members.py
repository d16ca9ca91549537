"""One block of polymers to and from the members of its shard. No torch, nothing pickled.

Graphs are stored as counts, steps and codes in the narrowest integers that hold them: bytes that
are not there need not be inflated. docs/shard-format.md describes every array.
"""

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mips_dist.data.block import CONFORMER_FIELDS, Array, PolymerBlock, ragged_rows

TOPOLOGY, BONDS, DESCRIPTORS = "topology.npz", "bonds.npz", "descriptors.npz"
CONFORMER, NAMES = "conformer.npz", "psmiles.json"

# What reading members can raise where the bytes are not what `encode_block` wrote.
DAMAGED = (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError)

# Far above any block's, and low enough that no crafted member fills the memory.
_MAX_ARRAYS = 64
_MAX_MEMBER_BYTES = 2**29

_VALID = ".valid"
_TOPOLOGY_COUNTS = ("num_atoms", "num_pairs", "num_path_atoms")
_BOND_COUNTS = ("num_bonds", "num_path_bonds")

# Dtype and dimensions of the fields of a block that are arrays; a field that was read may be of a
# narrower integer type.
FORMS = {
    "row": ("<i8", 1),
    "num_atoms": ("<i4", 1),
    "num_pairs": ("<i4", 1),
    "num_path_atoms": ("<i4", 1),
    "atom_features": ("<i2", 2),
    "is_backbone": ("|b1", 1),
    "pair_index": ("<i2", 2),
    "pair_hops": ("|u1", 1),
    "path_pair": ("<i4", 1),
    "path_position": ("|u1", 1),
    "path_atom": ("<i2", 1),
    "path_weight": ("<f4", 1),
    "pair_shift": ("|i1", 1),
    "num_bonds": ("<i4", 1),
    "edge_index": ("<i2", 2),
    "bond_type": ("|u1", 1),
    "cell_shift": ("|i1", 1),
    "num_path_bonds": ("<i4", 1),
    "path_bond_pair": ("<i4", 1),
    "path_bond_position": ("|u1", 1),
    "path_bond_type": ("|u1", 1),
    "path_bond_weight": ("<f4", 1),
    "num_coordinates": ("<i4", 1),
    "coordinates": ("<f4", 2),
    "is_hydrogen": ("|b1", 1),
    "conformer_status": ("|u1", 1),
}

# The one header that numpy writes for plain numbers; object arrays cannot be spelled in it.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][biuf][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}, ?)*\d{0,12}),?\), \} *\n",
    re.DOTALL,
)


def encode_block(block: PolymerBlock) -> dict[str, bytes]:
    """Return the members of a block, suffix -> bytes; equal blocks give equal bytes.

    Parameters
    ----------
    block
        At least one polymer, with bonds.
    """
    members = {TOPOLOGY: pack_arrays(_encode_topology(block))}
    members[BONDS] = pack_arrays(_encode_bonds(block))
    if block.descriptors:
        # Column-wise real values compress better.
        stored = {name: np.asfortranarray(x) for name, x in block.descriptors.items()}
        valid = {name + _VALID: x for name, x in block.descriptor_valid.items()}
        members[DESCRIPTORS] = pack_arrays(stored | valid)
    if block.conformer_status is not None:
        members[CONFORMER] = pack_arrays({name: getattr(block, name) for name in CONFORMER_FIELDS})
    names = {"psmiles": block.psmiles, "row": block.row.tolist()}
    members[NAMES] = json.dumps(names, ensure_ascii=False).encode()
    return members


def decode_block(
    members: Mapping[str, bytes | memoryview],
    groups: Collection[str] | None,
    with_bonds: bool,
    with_conformer: bool,
) -> PolymerBlock:
    """Return the block that `encode_block` made members of.

    Parameters
    ----------
    members
        Suffix -> bytes.
    groups
        Descriptor groups to read; None reads all.
    with_bonds, with_conformer
        Whether to read what stands in members of its own.

    Raises
    ------
    One of `DAMAGED`
        The bytes are no such members.
    """
    psmiles, row = decode_names(members[NAMES])
    values: dict[str, Any] = {"psmiles": psmiles, "row": row}
    values |= _decode_topology(unpack_arrays(members[TOPOLOGY]), len(psmiles))
    if with_bonds:
        values |= _decode_bonds(unpack_arrays(members[BONDS]), values)
    descriptors: dict[str, Array] = {}
    valid: dict[str, Array] = {}
    if DESCRIPTORS in members and (groups is None or len(groups)):
        stored = unpack_arrays(members[DESCRIPTORS])
        present = [name.removesuffix(_VALID) for name in stored if name.endswith(_VALID)]
        for name in present if groups is None else groups:
            descriptors[name] = np.ascontiguousarray(stored[name])
            valid[name] = stored[name + _VALID]
            _require(descriptors[name].ndim == 2 and valid[name].dtype == bool, name)
            _require(len(descriptors[name]) == len(psmiles) and valid[name].ndim == 1, name)
            _require(len(valid[name]) == len(psmiles), name)
    if CONFORMER in members and with_conformer:
        stored = unpack_arrays(members[CONFORMER])
        values |= {name: stored[name] for name in CONFORMER_FIELDS}
        _check_counts(values["num_coordinates"], len(psmiles), values["coordinates"])
        _require(len(values["is_hydrogen"]) == len(values["coordinates"]), "is_hydrogen")
        _require(len(values["conformer_status"]) == len(psmiles), "conformer_status")
    for name, (dtype, num_dimensions) in FORMS.items():
        if name in values:
            found = values[name]
            is_so = found.dtype == dtype or (found.dtype.kind in "iu" and dtype[1] in "iu")
            _require(is_so and found.ndim == num_dimensions, name)
    return PolymerBlock(descriptors=descriptors, descriptor_valid=valid, **values)


def decode_names(data: bytes | memoryview) -> tuple[list[str], Array]:
    """Return the spellings and the rows (G,) int64 of a block."""
    names = json.loads(bytes(data))
    psmiles, row = names["psmiles"], np.array(names["row"], dtype=np.int64)
    _require(isinstance(psmiles, list) and set(map(type, psmiles)) <= {str}, NAMES)
    _require(row.shape == (len(psmiles),), "row")
    return psmiles, row


def _encode_topology(block: PolymerBlock) -> dict[str, Array]:
    query, key = block.pair_index.astype(np.int64)
    atom_start, pair_start = block.offsets["num_atoms"][:-1], block.offsets["num_pairs"][:-1]
    pairs_of_atom = np.bincount(
        query + np.repeat(atom_start, block.num_pairs), minlength=len(block.is_backbone)
    )
    path_pair = block.path_pair + np.repeat(pair_start, block.num_path_atoms)
    return {
        "counts": _narrow(np.stack([getattr(block, name) for name in _TOPOLOGY_COUNTS])),
        "atom_features": _narrow(block.atom_features),
        "is_backbone": block.is_backbone,
        "pairs_of_atom": _narrow(pairs_of_atom),
        "pair_key_step": _narrow(key - query),
        "pair_hops": block.pair_hops,
        "path_pair_step": _steps(block.path_pair, block.num_path_atoms),
        "path_atom_step": _narrow(block.path_atom - query[path_pair]),
        **_encode_classes("path", block.path_position, block.path_weight),
    }


def _decode_topology(stored: Mapping[str, Array], num_polymers: int) -> dict[str, Array]:
    counts = stored["counts"].astype(np.int32)
    _require(counts.shape == (3, num_polymers), "counts")
    num_atoms, num_pairs, num_path_atoms = counts
    _require(num_polymers > 0 and bool((counts[:2] > 0).all()), "counts")
    features, is_backbone, hops = (stored[n] for n in ("atom_features", "is_backbone", "pair_hops"))
    for values in (features, is_backbone, stored["pairs_of_atom"]):
        _check_counts(num_atoms, num_polymers, values)
    for values in (hops, stored["pair_key_step"]):
        _check_counts(num_pairs, num_polymers, values)
    # Queries ascend within a polymer, so the number of each atom's pairs says which they are.
    pairs_of_atom = stored["pairs_of_atom"]
    found = np.add.reduceat(pairs_of_atom, _starts(num_atoms), dtype=np.int64)
    _require(np.array_equal(found, num_pairs), "pairs_of_atom")
    # Half the bytes where no polymer is larger: batches are made of rows from all over the memory.
    dtype = np.uint8 if num_atoms.max() < 256 else np.int16
    local_atom = ragged_rows(np.zeros(num_polymers, np.int64), num_atoms).astype(dtype)
    pair_index = np.empty((2, len(hops)), dtype)
    query = pair_index[0] = np.repeat(local_atom, pairs_of_atom)
    # A step back from an unsigned number wraps around twice, to the right one.
    np.add(query, stored["pair_key_step"], out=pair_index[1], casting="unsafe")
    size = num_atoms.astype(dtype)
    _check_range(pair_index[1], np.repeat(size, num_pairs), "pairs")
    path_pair, local_pair, position, weight = _decode_paths(
        "path", stored, num_pairs, num_path_atoms
    )
    path_atom = query[path_pair]
    np.add(path_atom, stored["path_atom_step"], out=path_atom, casting="unsafe")
    _check_range(path_atom, np.repeat(size, num_path_atoms), "paths")
    return {
        "num_atoms": num_atoms,
        "num_pairs": num_pairs,
        "num_path_atoms": num_path_atoms,
        "atom_features": features,
        "is_backbone": is_backbone,
        "pair_index": pair_index,
        "pair_hops": hops,
        "path_pair": local_pair,
        "path_position": position,
        "path_atom": path_atom,
        "path_weight": weight,
    }


def _encode_bonds(block: PolymerBlock) -> dict[str, Array]:
    bonds = block.bonds()
    return {
        "counts": _narrow(np.stack([bonds[name] for name in _BOND_COUNTS])),
        "edge_index": _narrow(bonds["edge_index"]),
        **{name: bonds[name] for name in ("bond_type", "cell_shift", "pair_shift")},
        "path_bond_pair_step": _steps(bonds["path_bond_pair"], bonds["num_path_bonds"]),
        "path_bond_type": bonds["path_bond_type"],
        **_encode_classes("path_bond", bonds["path_bond_position"], bonds["path_bond_weight"]),
    }


def _decode_bonds(stored: Mapping[str, Array], topology: Mapping[str, Any]) -> dict[str, Array]:
    num_atoms, num_pairs = topology["num_atoms"], topology["num_pairs"]
    counts = stored["counts"].astype(np.int32)
    _require(counts.shape == (2, len(num_atoms)), "counts")
    num_bonds, num_path_bonds = counts
    edge_index = stored["edge_index"].astype(np.int16)
    _require(edge_index.shape[:1] == (2,), "edge_index")
    for values in (edge_index.T, stored["bond_type"], stored["cell_shift"]):
        _check_counts(num_bonds, len(num_atoms), values)
    _check_range(edge_index, np.repeat(num_atoms, num_bonds), "bonds")
    _check_counts(num_pairs, len(num_atoms), stored["pair_shift"])
    _, path_bond_pair, position, weight = _decode_paths(
        "path_bond", stored, num_pairs, num_path_bonds
    )
    _check_counts(num_path_bonds, len(num_atoms), stored["path_bond_type"])
    return {
        "pair_shift": stored["pair_shift"],
        "num_bonds": num_bonds,
        "edge_index": edge_index,
        "bond_type": stored["bond_type"],
        "cell_shift": stored["cell_shift"],
        "num_path_bonds": num_path_bonds,
        "path_bond_pair": path_bond_pair,
        "path_bond_position": position,
        "path_bond_type": stored["path_bond_type"],
        "path_bond_weight": weight,
    }


def _encode_classes(prefix: str, position: Array, weight: Array) -> dict[str, Array]:
    """Give each distinct (position, weight) of the path entries a number; there are few."""
    # A weight is a fraction in (0, 1], so the exact sum tells both.
    sums = position.astype(np.float64) + weight
    _, first, number = np.unique(sums, return_index=True, return_inverse=True)
    return {
        f"{prefix}_class": _narrow(number),
        f"{prefix}_class_position": position[first],
        f"{prefix}_class_weight": weight[first],
    }


def _steps(pair: Array, counts: Array) -> Array:
    """Return by how much the pair grows from entry to entry, from 0 in every polymer."""
    steps = np.diff(pair.astype(np.int64), prepend=0)
    first = _starts(counts)[counts > 0]
    steps[first] = pair[first]
    return _narrow(steps)


def _decode_paths(
    prefix: str, stored: Mapping[str, Array], num_pairs: Array, num_entries: Array
) -> tuple[Array, Array, Array, Array]:
    """Return pair in the block and in its polymer, position and weight of path entries."""
    step, number = stored[f"{prefix}_pair_step"], stored[f"{prefix}_class"]
    _check_counts(num_entries, len(num_pairs), step)
    _check_counts(num_entries, len(num_pairs), number)
    # Steps are not negative, so that the last entry of a polymer is its largest.
    _require(step.dtype.kind == "u", f"{prefix}_pair_step")
    sums = np.zeros(len(step) + 1, np.int32)
    np.cumsum(step, out=sums[1:])
    start = _starts(num_entries)
    before = sums[start]
    _require(bool((sums[start + num_entries] - before < num_pairs).all()), f"{prefix}_pair_step")
    local = sums[1:] - np.repeat(before, num_entries)
    pair = local + np.repeat(_starts(num_pairs).astype(np.int32), num_entries)
    # A number beyond the classes is an IndexError, which is a damaged shard too.
    number = number.astype(np.intp)
    position = stored[f"{prefix}_class_position"][number]
    if num_pairs.max() < 2**16:
        local = local.astype(np.uint16)
    return pair, local, position, stored[f"{prefix}_class_weight"][number]


def _starts(counts: Array) -> Array:
    return np.cumsum(counts, dtype=np.int64) - counts


def _require(is_so: bool, what: str) -> None:
    if not is_so:
        raise ValueError(f"array {what} does not fit the others")


def _check_counts(counts: Array, num_polymers: int, values: Array) -> None:
    """Raise ValueError unless the polymers' counts add up to the rows of a field."""
    _require(counts.shape == (num_polymers,) and int(counts.sum()) == len(values), "of counts")


def _check_range(values: Array, end: Any, what: str) -> None:
    """Raise ValueError unless all values lie in [0, end)."""
    if values.size and (values.min() < 0 or not (values < end).all()):
        raise ValueError(f"an index of {what} is out of range")


def _narrow(values: Array) -> Array:
    """Return integers in the narrowest dtype that holds them all, unsigned where it can be."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    kinds = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32)
    fitting = [k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max]
    return np.ascontiguousarray(values, dtype=fitting[0])


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Return a compressed npz file, equal for equal arrays; object arrays are a ValueError."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, values in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(values), allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy")  # dated 1980
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=6)
    return buffer.getvalue()


def unpack_arrays(data: bytes | memoryview) -> dict[str, Array]:
    """Return the arrays of an npz file; they cannot be written to.

    No declared size is believed: a file that would not fit `_MAX_MEMBER_BYTES` is not inflated, and
    a shape must match the bytes that are there.

    Raises
    ------
    ValueError
        The file is damaged, or is no npz file of plain numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
        if len(entries) > _MAX_ARRAYS or size > _MAX_MEMBER_BYTES:
            raise ValueError(f"{len(entries)} arrays of {size} bytes are no block")
        if any(entry.compress_type != zipfile.ZIP_DEFLATED for entry in entries):
            raise ValueError("an array is compressed by another method than deflate")
        return {e.filename.removesuffix(".npy"): _parse_npy(_inflate(data, e)) for e in entries}
    except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError) as error:
        raise ValueError(f"no npz file: {error}") from error


def _inflate(data: bytes | memoryview, entry: zipfile.ZipInfo) -> bytes:
    """Return a file of a zip archive, no more of it than is declared.

    Straight from the bytes, which is faster than zipfile's streams.
    """
    name_size, extra_size = struct.unpack_from("<HH", data, entry.header_offset + 26)
    start = entry.header_offset + 30 + name_size + extra_size
    packed = data[start : start + entry.compress_size]
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.file_size + 1)
    if zlib.crc32(content) != entry.CRC:
        raise ValueError(f"array {entry.filename} was altered: its CRC is another one")
    return content


def _parse_npy(data: bytes) -> Array:
    header = _NPY_HEADER.match(data)
    if header is None:
        raise ValueError("an array is not in the form that numpy writes for plain numbers")
    descr, fortran, dimensions = header.groups()
    dtype = np.dtype(descr.decode())
    shape = tuple(int(text) for text in dimensions.split(b",") if text.strip())
    if math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise ValueError(f"an array of shape {shape} does not have its bytes")
    order = "F" if fortran == b"True" else "C"
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape, order=order)  # type: ignore[call-overload]
