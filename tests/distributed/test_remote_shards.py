"""Pre-training reads its shards from a web server as from a folder, and says when it is gone."""

from tests.distributed.conftest import curve, pretrain
from tests.preprocess.servers import http_server


def test_shards_behind_a_url_give_the_same_curve(full_shards, tmp_path):
    with http_server(full_shards.parent) as server:
        server.has_ranges = True
        url = f"shards={server.url}/{full_shards.name}"
        done = pretrain(url, f"run_dir={tmp_path / 'there'}")
        assert done.code == 0, done.err
        gone = pretrain(f"shards={server.url}/nowhere", f"run_dir={tmp_path / 'gone'}")
    here = pretrain(f"shards={full_shards}", f"run_dir={tmp_path / 'here'}")
    assert here.code == 0, here.err
    assert curve(tmp_path / "there") == curve(tmp_path / "here")
    assert any((tmp_path / "there" / "shard_cache").iterdir())
    assert not (tmp_path / "here" / "shard_cache").exists()

    # Shards are known by their contents, not by where they lie.
    again = pretrain(f"shards={full_shards}", f"run_dir={tmp_path / 'there'}")
    assert again.code == 0, again.err
    assert "is finished" in again.out
    assert gone.code == 1
    (line,) = [x for x in gone.err.splitlines() if x.startswith("error: ")]
    assert f"no file {server.url}/nowhere/manifest.json; check address" in line
    assert not (tmp_path / "gone").exists()
