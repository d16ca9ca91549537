"""The work of one actor: rows to canonical spellings, canonical spellings to the bytes of a shard.

Pure functions without Ray: what they return depends on their arguments alone (law L7).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mips_dist.chem.conformer import STATUS_NAMES
from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.psmiles import InvalidPolymer, canonicalize, has_stereo_marks
from mips_dist.chem.sample import Content, Sample, featurize
from mips_dist.data.block import NO_CONFORMER, PolymerBlock, stack
from mips_dist.data.shards import BLOCK_SIZE, ShardRecord, encode_shard

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


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


def canonical_rows(texts: Sequence[str]) -> CanonicalRows:
    """Canonicalize or reject each text."""
    result = CanonicalRows()
    for place, text in enumerate(texts):
        try:
            result.canonical.append(canonicalize(text))
        except InvalidPolymer as error:
            result.reasons[place] = str(error)
        except Exception as error:  # a defect of chemistry must not cost the run its other rows
            result.reasons[place] = _reason("canonicalization_failed", error)
        if place in result.reasons:
            result.canonical.append(None)
        elif has_stereo_marks(text):
            result.stereo.append(place)
    return result


def featurize_shard(
    shard: int,
    rows: Sequence[int],
    canonicals: Sequence[str],
    content: Content,
    max_hops: int,
    seed: int,
) -> FeaturizedShard:
    """Featurize polymers and return them as one shard.

    A polymer that raises is left out and named with its reason.
    """
    groups = list(DESCRIPTOR_GROUPS.values()) if content == "full" else []
    reasons: dict[int, str] = {}
    blocks: list[PolymerBlock] = []
    for start in range(0, len(rows), BLOCK_SIZE):
        part = slice(start, start + BLOCK_SIZE)
        samples, failed = featurize_each(
            list(canonicals[part]), lambda texts: featurize(texts, content, max_hops, seed)
        )
        reasons |= {rows[start + place]: reason for place, reason in failed.items()}
        kept = [row for row in rows[part] if row not in reasons]
        if kept:
            blocks.append(stack(samples, kept, groups, with_conformer=content == "full"))
    data, record = encode_shard(shard, blocks)
    return FeaturizedShard(
        data=data, record=record, reasons=reasons, conformer_status=_count_status(blocks)
    )


def featurize_each(
    canonicals: list[str], make: Callable[[list[str]], list[Sample]]
) -> tuple[list[Sample], dict[int, str]]:
    """Featurize all at once, or one by one where that raises.

    Returns
    -------
    The samples that were made, in order, and place -> reason of the others.
    """
    try:
        return make(canonicals), {}
    except Exception:  # someone in the list raises; below each is asked for its own
        samples, failed = [], {}
        for place, canonical in enumerate(canonicals):
            try:
                samples += make([canonical])
            except Exception as error:
                failed[place] = _reason("featurization_failed", error)
        return samples, failed


def _reason(code: str, error: Exception) -> str:
    """Return a rejection that is the same in every process."""
    lines = str(error).strip().splitlines()
    words = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{code}: {_ADDRESS.sub('0x', words)[:200]}"


def _count_status(blocks: Sequence[PolymerBlock]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for block in blocks:
        if block.conformer_status is not None:
            for status in block.conformer_status.tolist():
                counts["failed" if status == NO_CONFORMER else STATUS_NAMES[status]] += 1
    return dict(sorted(counts.items()))
