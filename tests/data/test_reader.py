"""Shards read in parts, from disk, http and S3: the same blocks, every fault one line."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from mips_dist.data import transfer
from mips_dist.data.block import PolymerBlock
from mips_dist.data.cache import ByteCache
from mips_dist.data.members import BONDS, CONFORMER
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import Manifest, read_index, read_manifest
from mips_dist.errors import MipsError, UsageError
from tests.data.shard_folder import copies, cut
from tests.preprocess.servers import http_server, s3_file_system
from tests.shard_folder import write_blocks

GROUPS = ["rdkit_2d", "atom_pair_3d"]
EVERY = np.arange(12)


@pytest.fixture(scope="module")
def original(block: PolymerBlock, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve blocks in three shards."""
    folder = tmp_path_factory.mktemp("original") / "shards"
    write_blocks(folder, cut(copies(block, 96), 8, 5))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    copy = tmp_path / "served" / "shards"
    copy.mkdir(parents=True)
    for path in original.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.0, 0.0))


def open_reader(folder: str | Path, cache: ByteCache | None = None) -> ShardReader:
    return ShardReader(folder, read_manifest(folder).shards, groups=GROUPS, cache=cache)


def one_line(reader: ShardReader, words: str) -> None:
    with pytest.raises(MipsError, match=words) as caught:
        list(reader.read(EVERY))
    assert "\n" not in str(caught.value)


def check(reader: ShardReader, original: Path, assert_equal) -> None:
    """The blocks in another order are those of the local folder."""
    expected = list(open_reader(original).read(EVERY))
    order = np.random.default_rng(0).permutation(12)
    for number, found in zip(order, reader.read(order), strict=True):
        assert_equal(found, expected[number])


def test_blocks_by_number(original: Path, block: PolymerBlock, assert_equal) -> None:
    many = copies(block, 96)
    reader = open_reader(original)
    assert reader.num_samples.tolist() == [8] * 12
    assert np.array_equal(reader.num_atoms, many.num_atoms)
    assert reader.blocks_of(np.array([0, 7, 8, 95])).tolist() == [0, 0, 1, 11]
    wanted = many.select(range(72, 80))
    (found,) = reader.read(np.array([9]))
    assert found.coordinates is None
    assert found.pair_shift is None
    for name in ("row", "pair_index", "path_weight", "atom_features"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    for name in GROUPS:
        assert np.array_equal(found.descriptors[name], wanted.descriptors[name])
    with_bonds = ShardReader(
        original, read_manifest(original).shards, groups=["rdkit_2d"], with_bonds=True
    )
    (bonds,) = with_bonds.read(np.array([9]))
    assert list(bonds.descriptors) == ["rdkit_2d"]
    assert np.array_equal(bonds.bonds()["edge_index"], wanted.bonds()["edge_index"])


def test_flipped_bits_are_found_wherever_they_matter(
    folder: Path, original: Path, assert_equal
) -> None:
    expected = list(open_reader(original).read(EVERY))
    reader, rng = open_reader(folder), np.random.default_rng(0)
    record = read_manifest(folder).shards[1]
    path = folder / record.name
    whole, num_found, num_flips = path.read_bytes(), 0, 150
    members = [
        (5 + number, place)
        for number, block in enumerate(record.blocks)
        for suffix, place in block.members.items()
        if suffix not in (BONDS, CONFORMER)
    ]
    for _ in range(num_flips):
        number, (start, size) = members[rng.integers(len(members))]
        altered = bytearray(whole)
        altered[start + rng.integers(size)] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        fault = ""
        try:
            (found,) = reader.read(np.array([number]))
        except MipsError as error:
            fault = str(error)
        if fault:
            key = record.blocks[number - 5].key
            assert fault.startswith(f"block {key} of {folder}/{record.name} cannot be decoded (")
            num_found += 1
        else:  # a date in the archive, or a blank
            assert_equal(found, expected[number])
    assert num_found > 0.5 * num_flips


def test_missing_and_short_files_are_one_line(folder: Path) -> None:
    reader = open_reader(folder)
    path = folder / "shard-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    one_line(reader, r"shard-000001\.tar ends before byte")
    path.unlink()
    one_line(reader, r"shard-000001\.tar is missing")
    index = folder / "shard-000002.index.npz"
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(MipsError, match=r"shard-000002\.index\.npz has .* bytes instead of"):
        open_reader(folder)


def test_http_with_lines_that_are_cut(folder: Path, original: Path, assert_equal) -> None:
    with http_server(folder.parent) as server:
        server.has_ranges = True
        url = f"{server.url}/shards/?token=abc"
        assert read_manifest(url) == read_manifest(original)
        assert np.array_equal(read_index(url).key, read_index(original).key)
        reader = open_reader(url)
        server.limits = [100, 10**9, 0, 7] * 8
        check(reader, original, assert_equal)
        assert not server.limits
        server.limits = [1] * 1000
        one_line(reader, r"http://127.*tar cannot be read .*; check connection")
        with pytest.raises(MipsError) as caught:
            list(reader.read(EVERY))
        assert "abc" not in str(caught.value)
        server.limits = []
        check(reader, original, assert_equal)
        path = folder / "shard-000001.tar"
        altered = bytearray(path.read_bytes())
        start, size = read_manifest(original).shards[1].blocks[0].members["topology.npz"]
        altered[start + size // 2] ^= 1
        path.write_bytes(altered)
        one_line(reader, r"block 000001-000 of http://127.* cannot be decoded")
        path.unlink()
        one_line(reader, r"no file http://127.*shard-000001\.tar; check address")
    one_line(reader, "cannot be read")


def test_a_server_without_ranges_is_refused(folder: Path) -> None:
    with http_server(folder.parent) as server:
        reader = open_reader(f"{server.url}/shards")
        one_line(reader, "comes whole .* no byte ranges; copy the shards")


@pytest.fixture(scope="module")
def s3(original: Path) -> Iterator[str]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_file_system() as system:
        system.mkdir("polymers")
        for path in original.iterdir():
            system.put_file(str(path), f"polymers/shards/{path.name}")
        yield "s3://polymers/shards"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_s3(s3: str, original: Path, tmp_path: Path, assert_equal) -> None:
    cache = ByteCache(tmp_path / "cache", 10**8)
    check(open_reader(s3, cache), original, assert_equal)
    check(open_reader(s3, cache), original, assert_equal)
    with pytest.raises(MipsError, match=r"no file s3://polymers/nowhere/manifest\.json"):
        read_manifest("s3://polymers/nowhere")


def test_a_password_in_the_address_is_refused() -> None:
    with pytest.raises(UsageError, match="environment") as caught:
        read_manifest("https://me:secret@host/shards")
    assert "secret" not in str(caught.value)


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_the_cache_serves_when_the_server_is_gone(
    folder: Path, original: Path, tmp_path: Path, assert_equal
) -> None:
    cache = ByteCache(tmp_path / "cache", 10**8)
    with http_server(folder.parent) as server:
        server.has_ranges = True
        url, shards = f"{server.url}/shards", read_manifest(original).shards
        list(ShardReader(url, shards, groups=GROUPS, cache=cache).read(EVERY))
    again = ShardReader(url, shards, groups=GROUPS, cache=ByteCache(cache.folder, 10**8))
    check(again, original, assert_equal)
    assert all(not name.startswith(".") for name in files(cache.folder))


def test_damaged_pieces_of_the_cache_are_fetched_again(
    folder: Path, original: Path, tmp_path: Path, assert_equal
) -> None:
    cache = ByteCache(tmp_path / "cache", 10**8)
    with http_server(folder.parent) as server:
        server.has_ranges = True
        url = f"{server.url}/shards"
        list(open_reader(url, cache).read(EVERY))
        for path in cache.folder.iterdir():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 16
            path.write_bytes(data)
        check(open_reader(url, cache), original, assert_equal)
    shards = read_manifest(original).shards
    check(ShardReader(url, shards, groups=GROUPS, cache=cache), original, assert_equal)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_the_cache_is_bounded(
    folder: Path, original: Path, tmp_path: Path, assert_equal, share: float
) -> None:
    total = sum(path.stat().st_size for path in folder.iterdir())
    cache = ByteCache(tmp_path / "cache", int(share * total))
    with http_server(folder.parent) as server:
        server.has_ranges = True
        reader = open_reader(f"{server.url}/shards", cache)
        for _ in range(3):
            check(reader, original, assert_equal)
            used = sum(files(cache.folder).values()) if share else 0
            assert used <= cache.max_bytes
    assert used >= 0.5 * cache.max_bytes
    assert cache.folder.exists() == bool(share)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ByteCache(tmp_path, 1000)
    for number in range(10):
        cache.put(str(number), bytes(100))
        os.utime(tmp_path / str(number), ns=(number, number))
    assert cache.get("0", 100) == bytes(100)
    assert cache.get("1", 99) is None  # not what was kept
    os.utime(tmp_path / "1", ns=(1, 1))
    cache.put("new", bytes(150))
    assert sorted(files(tmp_path)) == ["0", "3", "4", "5", "6", "7", "8", "9", "new"]
    cache.put("large", bytes(1001))
    assert cache.get("large", 1001) is None


def test_a_cache_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with http_server(folder.parent) as server:
        server.has_ranges = True
        with pytest.raises(MipsError, match="make room, or set cache_gb=0"):
            open_reader(f"{server.url}/shards", ByteCache(tmp_path / "cache", 10**6))


def test_a_manifest_of_no_shards(original: Path, tmp_path: Path) -> None:
    manifest: Manifest = write_blocks(tmp_path, [])
    with pytest.raises(MipsError, match=r"hold no polymer; see rejects\.csv"):
        ShardReader(tmp_path, manifest.shards, groups=[])
