"""The work of one actor: rows to canonical spellings, canonical spellings to the bytes of a block.

Pure functions without Ray: what they return depends on their arguments alone (law L7). They are
called in the child process of an actor (see `preprocess.isolation`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mips_dist.chem.conformer import MAX_EMBEDDED_ATOMS, STATUS_NAMES
from mips_dist.chem.descriptors import Content, has
from mips_dist.chem.psmiles import InvalidPolymer, canonicalize, has_stereo_marks
from mips_dist.chem.sample import Sample, featurize, featurize_each, groups_of
from mips_dist.data.block import NO_CONFORMER, PolymerBlock, stack
from mips_dist.data.index import index_blocks
from mips_dist.data.shards import BlockRecord, encode_piece
from preprocess.card import shard_statistics
from preprocess.rows import Refused


class OutOfMemory(BaseException):
    """Memory ran out; no ``Exception``, for what catches those must not go on in this process."""


@dataclass(kw_only=True)
class CanonicalRows:
    """Verdicts on consecutive rows."""

    canonical: list[str | None] = field(default_factory=list)  # None where rejected
    reasons: dict[int, str] = field(default_factory=dict)  # place in the chunk -> code: words
    stereo: list[int] = field(
        default_factory=list
    )  # places that are accepted but lost stereo marks


@dataclass(kw_only=True)
class FeaturizedBlock:
    """A block of a shard, and the polymers that did not get into it."""

    data: bytes  # part of the tar file; empty where no polymer is left
    record: BlockRecord | None
    index: bytes
    reasons: dict[int, str]  # row -> code: words
    conformer_status: dict[str, int]
    statistics: dict[str, Any]  # see `preprocess.card.shard_statistics`


def canonical_rows(texts: Sequence[str | Refused], condemned: Mapping[int, str]) -> CanonicalRows:
    """Canonicalize or reject each text.

    Parameters
    ----------
    texts
        One text a row.
    condemned
        Place -> reason of the texts that must not be touched.

    Raises
    ------
    OutOfMemory
        A text takes more memory than there is.
    """
    result = CanonicalRows()
    for place, text in enumerate(texts):
        refused = text.reason if isinstance(text, Refused) else condemned.get(place)
        if refused is not None:
            result.reasons[place] = refused
            result.canonical.append(None)
            continue
        assert isinstance(text, str)
        try:
            result.canonical.append(canonicalize(text))
        except InvalidPolymer as error:
            if isinstance(error.__cause__, MemoryError):
                raise OutOfMemory from error
            result.reasons[place] = str(error)
            result.canonical.append(None)
            continue
        if has_stereo_marks(text):
            result.stereo.append(place)
    return result


def featurize_block(
    canonicals: Sequence[str],
    condemned: Mapping[int, str],
    key: str,
    rows: Sequence[int],
    content: Content,
    max_hops: int,
    seed: int,
    num_conformers: int,
    conformer_backend: str,
) -> FeaturizedBlock:
    """Featurize polymers and return them as one block of a shard.

    A polymer that raises is left out and named with its reason, and so is one that is condemned.

    Parameters
    ----------
    canonicals
        Canonical P-SMILES.
    condemned
        Place -> reason of the polymers that must not be touched.
    key
        WebDataset key of the block.
    rows
        Input row of each polymer.
    content, max_hops, seed, num_conformers, conformer_backend
        See `mips_dist.chem.sample.featurize`.

    Raises
    ------
    OutOfMemory
        A polymer takes more memory than there is.
    """

    def make(texts: list[str]) -> list[Sample]:
        try:
            return featurize(texts, content, max_hops, seed, num_conformers, conformer_backend)
        except MemoryError as error:
            raise OutOfMemory from error

    groups = groups_of(content, num_conformers, conformer_backend)
    places = [place for place in range(len(rows)) if place not in condemned]
    samples, failed = featurize_each([canonicals[place] for place in places], make)
    reasons = {rows[place]: reason for place, reason in condemned.items()}
    reasons |= {rows[places[number]]: reason for number, reason in failed.items()}
    kept = [rows[place] for place in places if rows[place] not in reasons]
    if not kept:
        index = index_blocks([]).encode()
        return FeaturizedBlock(
            data=b"",
            record=None,
            index=index,
            reasons=reasons,
            conformer_status={},
            statistics=shard_statistics([]),
        )
    block = stack(samples, kept, groups, with_conformer=has(content, "full"))
    data, record = encode_piece(key, block)
    return FeaturizedBlock(
        data=data,
        record=record,
        index=index_blocks([block]).encode(),
        reasons=reasons,
        conformer_status=_count_status(block),
        statistics=shard_statistics([block]),
    )


def try_one(function: str, text: str, arguments: Sequence[Any]) -> None:
    """Do the work of one text alone, to see whether this process lives through it.

    Parameters
    ----------
    function
        ``canonical_rows`` or ``featurize_block``.
    text
        The text.
    arguments
        The further arguments of the task that it stands in.
    """
    if function == "canonical_rows":
        canonical_rows([text], {})
    else:
        key, rows, *settings = arguments
        featurize_block([text], {}, key, rows[:1], *settings)


def _count_status(block: PolymerBlock) -> dict[str, int]:
    if block.conformer_status is None:
        return {}
    counts: Counter[str] = Counter()
    for status, atoms in zip(block.conformer_status.tolist(), block.num_atoms, strict=True):
        absent = "too_large" if atoms > MAX_EMBEDDED_ATOMS else "failed"
        counts[absent if status == NO_CONFORMER else STATUS_NAMES[status]] += 1
    return dict(sorted(counts.items()))
