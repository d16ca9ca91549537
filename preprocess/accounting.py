"""Every row accounted for (law L9): the two tables, the counts of the manifest, the summary."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mips_dist.data.files import file_sha256, table
from mips_dist.data.shards import Manifest, ShardRecord
from preprocess.merge import FirstRows
from preprocess.output import MERGED_NAME, REJECTS_NAME, VERDICTS_NAME
from preprocess.verdicts import VerdictFiles


def account(
    header: dict[str, Any],
    path: Path,
    verdicts: VerdictFiles,
    first_rows: FirstRows,
    records: Iterable[dict[str, Any]],
) -> Manifest:
    """Write ``rejects.csv`` and ``merged.csv``, and return the manifest.

    Parameters
    ----------
    header
        First part of the manifest.
    path
        Output folder.
    verdicts, first_rows
        What became of every row.
    records
        What the second pass left of each shard, in order.
    """
    shards: list[ShardRecord] = []
    status: Counter[str] = Counter()
    # Row -> reason, of the few polymers that have a spelling but could not be featurized.
    failed: dict[int, str] = {}
    for values in records:
        shards.append(ShardRecord.from_json(values["shard"]))
        status.update(values["conformer_status"])
        failed |= {int(row): reason for row, reason in values["reasons"].items()}
    counts: Counter[str] = Counter()
    by_reason: Counter[str] = Counter()
    with (
        table(path / REJECTS_NAME, ["row", "reason"]) as rejects,
        table(path / MERGED_NAME, ["row", "equals"]) as merged,
    ):
        for chunk in verdicts:
            firsts = first_rows.of(chunk).tolist()
            for place, canonical in enumerate(chunk.canonical):
                row, first = chunk.start + place, firsts[place]
                # A row that equals one which cannot be featurized shares its fate.
                reason = chunk.reasons[place] if canonical is None else failed.get(first)
                if reason is not None:
                    rejects.writerow([row, reason])
                    by_reason[reason.partition(":")[0]] += 1
                    continue
                counts["stereo_dropped"] += place in chunk.stereo
                if first == row:
                    counts["num_samples"] += 1
                else:
                    merged.writerow([row, first])
                    counts["num_merged"] += 1
    return Manifest(
        **header,
        num_rows=verdicts.num_rows,
        num_samples=counts["num_samples"],
        num_merged=counts["num_merged"],
        num_rejected=by_reason.total(),
        rejected_by_reason=dict(sorted(by_reason.items())),
        stereo_dropped=counts["stereo_dropped"],
        conformer_status=dict(sorted(status.items())),
        tables={
            name: file_sha256(path / name)
            for name in (REJECTS_NAME, MERGED_NAME, VERDICTS_NAME)
            if (path / name).is_file()
        },
        shards=shards,
    )


def summary(manifest: Manifest) -> list[str]:
    """Return the lines that say what is in the folder."""
    size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    lines = [
        f"  samples   {manifest.num_samples:,} in {len(manifest.shards)} shards, {size:.1f} MB",
        f"  merged    {manifest.num_merged:,} spell a polymer of an earlier row (merged.csv)",
        f"  rejected  {manifest.num_rejected:,} (rejects.csv)",
    ]
    lines += [f"    {reason}: {count:,}" for reason, count in manifest.rejected_by_reason.items()]
    if manifest.stereo_dropped:
        lines.append(f"  stereo marks dropped in {manifest.stereo_dropped:,} rows")
    if manifest.conformer_status:
        found = [f"{name} {count:,}" for name, count in manifest.conformer_status.items()]
        lines.append(f"  conformers: {', '.join(found)}")
    return lines
