"""Model directories that a stranger made: one line each, no code run, no memory filled.

Truncated, missing and altered files, and other schemas: tests/model/test_bundle.py.
"""

import gzip
import json
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mips_dist.data.files import file_sha256
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import load_bundle
from tests.model.test_bundle import save
from tests.security.commands import pickled, refused


def edit(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def weights(data: bytes) -> Callable[[Path], None]:
    """Other weights, and the sum that fits them."""

    def make(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(data)
        sign(folder)

    return make


def sign(folder: Path) -> None:
    sha256 = file_sha256(folder / "weights.safetensors")
    edit(folder / "config.json", lambda config: config.update(weights_sha256=sha256))


def model(**values: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        edit(folder / "config.json", lambda config: config["model"].update(values))

    return make


def config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def header(entries: dict[str, Any], body: bytes = b"\0" * 8) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + body


def not_finite(folder: Path) -> None:
    path = folder / "weights.safetensors"
    stored = load_file(path)
    first = next(iter(stored))
    stored[first] = torch.full_like(stored[first], float("nan"))
    save_file(stored, path)
    sign(folder)


def other_link(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return make


def fifo(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")


def bomb(folder: Path) -> None:
    """A partner that unpacks to zeros without end, and the sum that fits it."""
    path = folder / "chain_model.safetensors.gz"
    path.write_bytes(
        gzip.compress(header({"a": {"dtype": "F32", "shape": [2**40]}}) + bytes(2**26))
    )
    ensemble = {"network_share": 0.5, "chain_model_sha256": file_sha256(path)}
    edit(folder / "config.json", lambda values: values.update(ensemble=ensemble))


def scaler(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "scaler.json", lambda found: found.update(values))


OUTSIDE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}}
DEEP = "[" * 100_000
# Name -> how it is made, words of the line.
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle as weights": (weights(pickled()), "does not fit"),
    "a header of 2^62 bytes": (weights((2**62).to_bytes(8, "little") + b"{}"), "does not fit"),
    "offsets outside": (weights(header(OUTSIDE)), "does not fit"),
    "weights that are not finite": (not_finite, "not finite"),
    "a class to call": (model(_target_="os.system"), "describes no model"),
    "a wide model": (model(hidden_dim=2**40, ffn_dim=2**40), "does not fit"),
    "a deep model": (model(num_layers=10**12), "does not fit"),
    "words as sizes": (model(hidden_dim="512"), "describes no model"),
    "YAML with a tag": (config("!!python/object/apply:os.system ['touch canary']"), "JSON"),
    "nested without end": (config(DEEP), "JSON"),
    "a schema of the environment": (
        lambda folder: edit(
            folder / "config.json", lambda c: c.update(feature_schema="${oc.env:HOME}")
        ),
        "describes no model",
    ),
    "a link to another file": (other_link("config.json", "/etc/passwd"), "JSON"),
    "a link to a device": (other_link("weights.safetensors", "/dev/zero"), "lacks"),
    "a pipe that nobody writes to": (fifo, "lacks"),
    "a partner that is a bomb": (bomb, "is damaged"),
    "a scale that is not finite": (scaler(std=float("inf")), "is no scaler"),
    "a scale in words": (scaler(mean="0"), "is no scaler"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_loading_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    make, words = HOSTILE[name]
    make(save(tmp_path / "model", descriptors=[]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MipsError, match=words) as caught:
        load_bundle(tmp_path / "model", known_schema())
    assert "\n" not in str(caught.value)
    assert os.environ["HOME"] not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_the_command_says_one_line(tmp_path: Path, verb: str) -> None:
    """The worst of them; a process each, so two at a time."""

    def check(name: str) -> None:
        folder = tmp_path / name.replace(" ", "-")
        make, words = HOSTILE[name]
        make(save(folder / "model", descriptors=[]))
        (folder / "in.csv").write_text("psmiles\n*CC*\n")
        output = {"predict": "out.csv", "embed": "out.npz"}[verb]
        assert words in refused(folder, "mips", verb, "in.csv", "-m", "model", "-o", output)

    names = ["a pickle as weights", "a class to call", "YAML with a tag", "a wide model"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, names if verb == "predict" else names[:1]))


def test_a_card_and_a_foreign_file_are_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", descriptors=[])
    (folder / "README.md").write_text("<script>alert(1)</script>")
    (folder / "model.pkl").write_bytes(pickled())
    (folder / "modeling.py").write_text("raise SystemExit('code was run')")
    assert load_bundle(folder, known_schema()).kind == "property"
