"""The work of one actor: rows to canonical spellings, canonical spellings to the bytes of a shard.

Pure functions without Ray: what they return depends on their arguments alone (law L7).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mips_dist.chem.conformer import MAX_EMBEDDED_ATOMS, STATUS_NAMES
from mips_dist.chem.descriptors import descriptor_groups
from mips_dist.chem.psmiles import InvalidPolymer, canonicalize, has_stereo_marks
from mips_dist.chem.sample import Content, featurize, featurize_each
from mips_dist.data.block import NO_CONFORMER, PolymerBlock, stack
from mips_dist.data.shards import BLOCK_SIZE, ShardRecord, encode_shard
from preprocess.rows import Refused


@dataclass(kw_only=True)
class CanonicalRows:
    """Verdicts on consecutive rows."""

    canonical: list[str | None] = field(default_factory=list)  # None where rejected
    reasons: dict[int, str] = field(default_factory=dict)  # place in the chunk -> code: words
    stereo: list[int] = field(
        default_factory=list
    )  # places that are accepted but lost stereo marks


@dataclass(kw_only=True)
class FeaturizedShard:
    """A shard, and the polymers that did not get into it."""

    data: bytes
    record: ShardRecord
    reasons: dict[int, str]  # row -> code: words
    conformer_status: dict[str, int]


def canonical_rows(texts: Sequence[str | Refused]) -> CanonicalRows:
    """Canonicalize or reject each text."""
    result = CanonicalRows()
    for place, text in enumerate(texts):
        if isinstance(text, Refused):
            result.reasons[place] = text.reason
            result.canonical.append(None)
            continue
        try:
            result.canonical.append(canonicalize(text))
        except InvalidPolymer as error:
            result.reasons[place] = str(error)
            result.canonical.append(None)
            continue
        if has_stereo_marks(text):
            result.stereo.append(place)
    return result


def featurize_shard(
    shard: int,
    rows: Sequence[int],
    canonicals: Sequence[str],
    content: Content,
    max_hops: int,
    seed: int,
    num_conformers: int,
    conformer_backend: str,
) -> FeaturizedShard:
    """Featurize polymers and return them as one shard.

    A polymer that raises is left out and named with its reason.
    """
    made = descriptor_groups(num_conformers, conformer_backend)
    groups = list(made.values()) if content == "full" else []
    reasons: dict[int, str] = {}
    blocks: list[PolymerBlock] = []
    for start in range(0, len(rows), BLOCK_SIZE):
        part = slice(start, start + BLOCK_SIZE)
        samples, failed = featurize_each(
            list(canonicals[part]),
            lambda texts: featurize(
                texts, content, max_hops, seed, num_conformers, conformer_backend
            ),
        )
        reasons |= {rows[start + place]: reason for place, reason in failed.items()}
        kept = [row for row in rows[part] if row not in reasons]
        if kept:
            blocks.append(stack(samples, kept, groups, with_conformer=content == "full"))
    data, record = encode_shard(shard, blocks)
    return FeaturizedShard(
        data=data, record=record, reasons=reasons, conformer_status=_count_status(blocks)
    )


def _count_status(blocks: Sequence[PolymerBlock]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for block in blocks:
        if block.conformer_status is not None:
            for status, atoms in zip(block.conformer_status.tolist(), block.num_atoms, strict=True):
                absent = "too_large" if atoms > MAX_EMBEDDED_ATOMS else "failed"
                counts[absent if status == NO_CONFORMER else STATUS_NAMES[status]] += 1
    return dict(sorted(counts.items()))
