"""Vectors of polymers and of their atoms, as a network sees them: the inside of any model.

The vector of an atom is what the encoder gives after its last layer and, where the model has
descriptor groups, after their fusion by attention. The vector of a polymer is the mean of those of
its atoms: it is what the head of a property model reads, and of a pre-trained model the same place.
Each polymer is computed by itself, from its canonical spelling, on one thread: so its vectors
depend on the polymer alone, bit for bit.

Legend: R rows, D width of the model, N atoms of all rows.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rdkit import Chem

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.data.column import canonical_column
from mips_dist.data.files import replacing
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import Bundle
from mips_dist.model.mips import mean_over_atoms
from mips_dist.model.released import model_directory
from mips_dist.threads import one_thread
from mips_dist.use.canonicalize import COLUMNS
from mips_dist.use.predict import featurized, open_model
from mips_dist.use.table import PolymerTable, is_psmiles

DEFAULT_MODEL = "mips-small"
ROW_GROUP = 512
MAX_KNOWN = 4096  # polymers whose vectors are kept for rows that follow
NPZ_NOTE_BYTES = 1 << 30
ENDINGS = (".npz", ".parquet")

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Embedding:
    """Vectors of one polymer.

    Attributes
    ----------
    polymer
        (D,), or None where it has none.
    atoms
        (n, D), heavy atoms of the canonical unit.
    index
        (n,) place of each atom in the canonical P-SMILES as RDKit counts, stars included.
    reason
        Why there is none; else a note: the descriptor groups that the polymer does not have.
    """

    polymer: Vectors | None
    atoms: Vectors
    index: npt.NDArray[np.int32]
    reason: str


def embed(polymers: Any, model: str | Path = DEFAULT_MODEL) -> Vectors:
    """Return the vectors of polymers, (R, D) float32; a row of NaN where a text is no polymer.

    Parameters
    ----------
    polymers
        R P-SMILES in any spelling: a list, an array (R,) or (R, 1), a series, or a frame of pandas
        or polars with one column.
    model
        Name of a released model, or a model directory; pre-trained or of a property.

    Raises
    ------
    ValueError
        Something else than one column of texts.
    MipsError
        No such model, or a damaged one.

    Examples
    --------
    >>> from mips_dist import embed
    >>> embed(["*CC*", "*CC(*)c1ccccc1"]).shape  # doctest: +SKIP
    (2, 128)
    """
    canonicals, _ = canonical_column(polymers)
    bundle = open_model(model_directory(str(model)))
    vectors = np.full((len(canonicals), bundle.model.config.hidden_dim), np.nan, np.float32)
    known = _remembering(bundle)
    with one_thread():
        for row, canonical in zip(vectors, canonicals, strict=True):
            found = known(canonical).polymer if canonical else None
            if found is not None:
                row[:] = found
    return vectors


def embed_given(given: str, model: str | Path, output: Path, with_atoms: bool) -> None:
    """Write the vectors of the polymers of a table, a row for each of its rows, in order.

    Parameters
    ----------
    given
        A table that `PolymerTable.open` reads, with a column psmiles (or smiles); or one P-SMILES:
        a text with a star that is no file.
    model
        As for `embed`.
    output
        ``.parquet``, written as it is computed; or ``.npz``, which is held in memory until then. It
        appears when it is complete. Both have row (from 0), canonical, status (ok or rejected),
        reason and embedding: in parquet a list of D, null where the row is rejected; in npz (R, D)
        float32, NaN there.
    with_atoms
        Add the vectors of atoms. In parquet the lists atom_index and atom_embedding; in npz
        atom_embedding (N, D), atom_index (N,), and atom_offset (R + 1,): the atoms of row i are
        those from atom_offset[i] to atom_offset[i + 1].

    Raises
    ------
    MipsError, UsageError
        Bad input, model or output; nothing is written.
    """
    _check_output(Path(given), output)
    num_rows, spelled = _spelled(given)
    bundle = open_model(model_directory(str(model)))
    width = bundle.model.config.hidden_dim
    rows = _rows(spelled, _remembering(bundle))
    with one_thread():
        if output.suffix.lower() == ".parquet":
            _write_parquet(output, rows, width, with_atoms, str(model))
        else:
            num_bytes = num_rows * width * 4
            if num_bytes > NPZ_NOTE_BYTES:
                print(
                    f"note: an npz is held in memory, here {num_bytes / 1e9:.0f} GB and more; "
                    "a .parquet is written as it is computed",
                    file=sys.stderr,
                )
            _write_npz(output, rows, width, with_atoms, str(model))


def embed_one(bundle: Bundle, canonical: str) -> Embedding:
    """Embed one polymer from its canonical P-SMILES; call it inside `one_thread`."""
    batch, remark = featurized(bundle, canonical)
    if batch is None:
        width = bundle.model.config.hidden_dim
        return Embedding(None, np.empty((0, width), np.float32), np.empty(0, np.int32), remark)
    with torch.inference_mode():
        atoms = bundle.model.encode(batch)
        polymer = mean_over_atoms(atoms, batch)[0]
    mol = Chem.MolFromSmiles(canonical)
    index = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum()]
    return Embedding(polymer.numpy(), atoms.numpy(), np.array(index, np.int32), remark)


def _remembering(bundle: Bundle) -> Callable[[str], Embedding]:
    @lru_cache(maxsize=MAX_KNOWN)
    def known(canonical: str) -> Embedding:
        return embed_one(bundle, canonical)

    return known


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the output; `cells` are canonical, status and reason."""

    cells: tuple[str, str, str]
    found: Embedding | None


def _spelled(given: str) -> tuple[int, Iterator[tuple[str, str]]]:
    """Return the number of rows (0: not known) and of each canonical spelling and rejection."""
    if is_psmiles(given):
        try:
            return 1, iter([(canonicalize(given.strip()), "")])
        except InvalidPolymer as error:
            raise MipsError(f"{given[:80]}: {error}") from error
    table = PolymerTable.open(Path(given))
    return table.num_rows or 0, (row[1:] for row in table.rows("embedding"))


def _rows(spelled: Iterator[tuple[str, str]], known: Callable[[str], Embedding]) -> Iterator[_Row]:
    for canonical, reason in spelled:
        found = None if reason else known(canonical)
        if found is None or found.polymer is None:
            why = reason if found is None else found.reason
            yield _Row((canonical, "rejected", why), None)
        else:
            yield _Row((canonical, "ok", found.reason), found)


def _check_output(input: Path, output: Path) -> None:
    if output.suffix.lower() not in ENDINGS:
        raise UsageError(f"{output} must end in {' or '.join(ENDINGS)}; give such a name with -o")
    if output.is_dir():
        raise UsageError(f"{output} is a folder; give the name of a file with -o")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is no folder; make it, or give another name with -o")
    if output.exists() and input.exists() and output.samefile(input):
        raise UsageError(f"{output} is the input; give another name with -o")


def _write_npz(
    output: Path, rows: Iterator[_Row], width: int, with_atoms: bool, model: str
) -> None:
    cells: list[tuple[str, str, str]] = []
    vectors: list[Vectors] = []
    atoms: list[Embedding | None] = []
    absent = np.full(width, np.nan, np.float32)
    for row in rows:
        cells.append(row.cells)
        polymer = None if row.found is None else row.found.polymer
        vectors.append(absent if polymer is None else polymer)
        if with_atoms:
            atoms.append(row.found)
    arrays: dict[str, npt.NDArray[Any]] = {
        "model": np.array(model),
        "row": np.arange(len(cells)),
        **{name: np.array([c[i] for c in cells]) for i, name in enumerate(COLUMNS)},
        "embedding": np.stack(vectors),
    }
    if with_atoms:
        found = [own for own in atoms if own is not None]
        sizes = [0 if own is None else len(own.index) for own in atoms]
        arrays["atom_offset"] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        arrays["atom_index"] = np.concatenate([own.index for own in found] or [np.empty(0, int)])
        arrays["atom_embedding"] = np.concatenate(
            [own.atoms for own in found] or [np.empty((0, width), np.float32)]
        )
    with replacing(output) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _write_parquet(
    output: Path, rows: Iterator[_Row], width: int, with_atoms: bool, model: str
) -> None:
    vector = pa.list_(pa.float32(), width)
    fields = [("row", pa.int64()), *((name, pa.string()) for name in COLUMNS)]
    fields.append(("embedding", vector))
    if with_atoms:
        fields += [("atom_index", pa.list_(pa.int32())), ("atom_embedding", pa.list_(vector))]
    schema = pa.schema(fields, metadata={"model": model})
    with replacing(output) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        start = 0
        while group := [row for _, row in zip(range(ROW_GROUP), rows, strict=False)]:
            columns: list[Any] = [pa.array(range(start, start + len(group)), pa.int64())]
            columns += [pa.array(texts) for texts in zip(*(r.cells for r in group), strict=True)]
            found = [row.found for row in group]
            columns.append(_lists([None if f is None else f.polymer for f in found], vector))
            if with_atoms:
                columns.append(
                    pa.array([None if f is None else f.index for f in found], schema.types[-2])
                )
                columns.append(_atom_lists(found, vector))
            writer.write_table(pa.table(columns, schema=schema))
            start += len(group)


def _lists(vectors: list[Vectors | None], vector: pa.DataType) -> pa.Array:
    """Return a column of vectors of one width, null for None."""
    zero = np.zeros(vector.list_size, np.float32)
    flat = np.concatenate([zero if v is None else v for v in vectors])
    mask = pa.array([v is None for v in vectors])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=vector, mask=mask)


def _atom_lists(found: list[Embedding | None], vector: pa.DataType) -> pa.Array:
    """Return a column of lists of vectors, null for None."""
    sizes = [0 if own is None else len(own.index) for own in found]
    atoms = [own.atoms for own in found if own is not None]
    flat = np.concatenate(atoms) if atoms else np.empty((0, vector.list_size), np.float32)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), type=vector)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    mask = pa.array([own is None for own in found])
    return pa.ListArray.from_arrays(offsets, inner, mask=mask)
