"""The interface over HTTP, on a server that runs as a user runs it."""

import http.client
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import psutil
import pytest

import mips_dist as mips
from tests.page import Page
from tests.polymers import CORNER_CASES
from tests.serve.poison.sitecustomize import CRASH

TEXTS = [
    "*CC(*)C",
    "[*]CC(C)CC([*])C",
    "*c1ccc(*)s1",
    "",
    "=1+1",
    "*CO*",
    "<b>*</b>",
    "*CO*",
    "*CO*",
]


def test_rows_come_in_order_with_the_bits_of_the_library(server):
    texts = [*TEXTS, *list(CORNER_CASES)[:20]]
    rows = server.predict(texts)
    expected = mips.load(*server.models).predict(texts)
    assert [row["psmiles"] for row in rows] == texts
    for row, known in zip(rows, expected, strict=True):
        assert (row["canonical"], row["status"]) == (known.canonical, known.status)
        assert row["reason"] == known.reason
        values = {name: (v["value"], v["unit"]) for name, v in row["values"].items()}
        assert values == {name: (v.value, v.unit) for name, v in known.values.items()}


def test_the_same_bits_alone_in_a_batch_and_on_any_replica(server):
    texts = list(CORNER_CASES)[:12]
    together = [row["values"] for row in server.predict(texts)]
    with ThreadPoolExecutor(12) as pool:  # many at a time: batches, on both replicas
        for _ in range(3):
            alone = pool.map(lambda text: server.predict([text])[0]["values"], texts)
            assert list(alone) == together
    assert [row["values"] for row in server.predict(texts[::-1], ["nc"])] == [
        {name: v for name, v in values.items() if name == "nc"} for values in together[::-1]
    ]
    with ThreadPoolExecutor(12) as pool:
        body = {"psmiles": ["*CO*"] * 4}
        sizes = pool.map(lambda _: int(server.ask("/predict", body)[1]["x-batch-size"]), range(48))
        assert max(sizes) > 4, "no two requests ever shared a batch"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"psmiles": ["*CC*"', 400, "no JSON"),
        (b"[" * 100_000, 400, "parsing"),
        (b"\xff\xfe", 400, ""),
        (b"[]", 422, "body: "),
        ({}, 422, "psmiles: "),
        ({"psmiles": []}, 422, "psmiles: "),
        ({"psmiles": ["*CC*", None]}, 422, "psmiles.1: "),
        ({"psmiles": "*CC*"}, 422, "psmiles: "),
        (b'{"psmiles": ["\\ud800"]}', 422, "half of a character"),
        ({"psmiles": ["*CC*"] * 201}, 422, "200"),
        ({"psmiles": ["*CC*"], "more": 1}, 422, "more: "),
        ({"psmiles": ["*CC*"], "properties": []}, 422, "properties: "),
        ({"psmiles": ["*CC*"], "properties": ["egd"]}, 422, "did you mean egc?"),
        (b'{"psmiles": ["*CC*"], "properties": ["\\ud800"]}', 422, "there are egc, nc"),
        (b" " * 10_000_000, 413, "at most 1,000,000 bytes"),
    ],
)
def test_a_bad_body_is_a_short_reason(server, body, status, says):
    found, _, text = server.ask("/predict", body)
    assert found == status, text
    detail = json.loads(text)["detail"]
    assert says in detail
    assert len(detail) < 200
    assert server.ask("/ready")[0] == 200


def test_a_body_without_a_length_is_counted(server):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    kind = {"Content-Type": "application/json"}
    parts = (b" " * 100_000 for _ in range(20))
    connection.request("POST", "/predict", parts, kind, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_strangers_pages_cannot_use_it(server):
    body = {"psmiles": ["*CC*"]}
    assert server.ask("/predict", body, {"Content-Type": "text/plain"})[0] == 415
    assert server.ask("/models", headers={"Host": "evil.example:80"})[0] == 400
    assert server.ask("/models", headers={"Host": "localhost:80"})[0] == 200
    headers = server.ask("/predict", body, {"Origin": "http://evil.example"})[1]
    assert "access-control-allow-origin" not in headers


def test_hostile_polymers_cost_their_rows(server):
    texts = ["*C" + "C" * 30_000 + "*", CRASH, "*CC*\x00", "*" * 99, "*CO*"]
    rows = server.predict(texts)
    assert [row["reason"].partition(":")[0] for row in rows][:3] == [
        *("too_long", "crashed", "characters")
    ]
    assert [row["status"] for row in rows] == ["rejected"] * 4 + ["ok"]
    assert rows[-1]["values"] == server.predict(["*CO*"])[0]["values"]


def test_what_is_served(server):
    about = json.loads(server.ask("/models")[2])
    assert [(m["property"], m["unit"], m["r2"]) for m in about["models"]] == [
        *(("egc", "eV", 0.5), ("nc", "1", 0.5))
    ]
    assert all(m["description"] and m["num_parameters"] > 1000 for m in about["models"])
    assert json.loads(server.ask("/health")[2]) == {"status": "ok"}
    assert json.loads(server.ask("/ready")[2]) == {"status": "ready"}
    described = json.loads(server.ask("/openapi.json")[2])
    assert {"/predict", "/picture.svg", "/models", "/health", "/ready"} == set(described["paths"])
    assert server.ask("/docs")[0] == 404  # it would load scripts from elsewhere


def test_pictures_stand_alone(server):
    for kind in ("unit", "bands", "why&property=nc"):
        status, headers, text = server.ask(f"/picture.svg?psmiles=*c1ccc(*)s1&kind={kind}")
        assert (status, headers["content-type"]) == (200, "image/svg+xml")
        assert "script" not in text
        tree = ElementTree.fromstring(text)
        assert not [a for e in tree.iter() for a in e.attrib if a.endswith("href")]
    assert "unparsable" in server.ask("/picture.svg?psmiles=xx")[2]
    assert server.ask("/picture.svg?psmiles=*CC*&kind=x")[0] == 422
    assert "no bands" in server.ask("/picture.svg?psmiles=*C[Pt](C)(C)*&kind=bands")[2]


def test_the_page_loads_nothing_from_elsewhere(server):
    status, headers, text = server.ask("/")
    assert status == 200
    assert (
        "default-src 'none'; script-src 'self'; style-src 'self'"
        in (headers["content-security-policy"])
    )
    page = Page(text)
    addresses = [v for _, name, v in page.attributes if name in ("src", "href")]
    assert not [a for a in addresses if ":" in a]
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    for name in ("page.js", "table.js", "page.css"):
        part = server.ask(f"/{name}")[2]
        assert "http" not in part.replace("https://", "http")
        assert "innerHTML" not in part
        assert "url(" not in part


def test_only_this_machine_can_reach_it(server):
    own = psutil.Process(server.process.pid)
    listening = [
        connection.laddr.ip
        for process in [own, *own.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_killed_replica_loses_no_request(server):
    texts = list(CORNER_CASES)[:8]
    expected = [row["values"] for row in server.predict(texts)]
    stop = threading.Event()
    answers: list[tuple[int, bool]] = []

    def client() -> None:
        while not stop.is_set():
            status, _, text = server.ask("/predict", {"psmiles": texts})
            is_right = (
                status == 200 and [row["values"] for row in json.loads(text)["rows"]] == expected
            )
            answers.append((status, is_right))

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        time.sleep(0.5)
        victim = server.replicas()[0]
        victim.kill()
        killed_at = len(answers)
        time.sleep(3)
        stop.set()
        for done in clients:
            done.result()
    assert len(answers) > killed_at + 4
    assert all(is_right for _, is_right in answers), [a for a in answers if not a[1]]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-p", "egd"], 2, "did you mean egc"),
        (["-p", "egc", "--host", "not an address"], 2, "cannot listen on not an address"),
        (["-p", "egc", "--replicas", "0"], 2, "--replicas"),
    ],
)
def test_a_bad_command_is_one_line(arguments, code, says):
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra [serve])")
    command = [sys.executable, "-m", "mips_dist.cli", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_ray_serve_the_pip_install_is_named(tmp_path):
    missing = "raise ModuleNotFoundError('No module named starlette', name='starlette')\n"
    (tmp_path / "starlette.py").write_text(missing)
    script = (
        "import sys; from mips_dist.cli import main; sys.argv[1:] = ['serve', '-p', 'egc']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {script}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the server needs Ray Serve")
    assert "pip install 'mips-dist[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1
