"""The page in a browser: headless Chromium by playwright, where both are installed."""

import csv
import io
import json
import shutil

import pytest

import mips_dist as mips

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed, so the page was not tried"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium is installed, so the page was not tried")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    outside: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith(server.url) else 0)
    page.goto(server.url)
    page.wait_for_selector("#properties input")
    yield page
    assert not outside
    # A picture that is refused is said to the console; nothing else may be.
    assert not [text for text in complaints if "status of 422" not in text]
    page.close()


def cells(page):
    script = (
        "[...document.querySelectorAll('#rows tr')].map(r => [...r.children].map(c => c.innerText))"
    )
    return page.evaluate(script)


def test_paste_predict_download(page, server):
    evil = "<img src=x onerror=alert(1)>"
    texts = ["*CC(*)C", evil, "[*]CC(C)CC([*])C", *["*CO*"] * 20, "*c1ccc(*)s1"]
    page.fill("#text", "\n".join(texts))
    page.keyboard.press("Tab")  # the keyboard alone does all that follows
    for _ in range(10):
        if page.evaluate("document.activeElement.id") == "go":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#download:not([hidden])")
    assert page.inner_text("#status") == "24 of 24 polymers done, 1 rejected."
    rows = cells(page)
    assert len(rows) == 24
    assert rows[1][1].startswith(evil + "\nrejected, characters")
    assert "same polymer as row 0" in rows[2][1]
    assert "same polymer as row 3" in rows[22][1]  # in another request than row 3
    assert page.evaluate("document.querySelectorAll('#rows img[onerror]').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.wait_for_function("document.querySelector('#rows img').naturalWidth > 0")
    with page.expect_download() as waiting:
        page.click("#download")
    table = list(csv.reader(io.StringIO(waiting.value.path().read_text(encoding="utf-8"))))
    expected = mips.load(*server.models).predict(texts)
    assert table[0] == ["psmiles", *expected.columns]
    for line, known in zip(table[1:], expected, strict=True):
        row = dict(zip(table[0], line, strict=True))
        assert (row["psmiles"], row["reason"]) == (known.psmiles, known.reason)
        assert [float(row[n]) for n in known.values] == [v.value for v in known.values.values()]


def test_a_csv_keeps_its_columns(page):
    body = '\ufeffname,PSMILES\r\n"a, ""b""\nc",*CO*\r\n=1+1,\r\nshort\r\n'
    file = {"name": "x.csv", "mimeType": "text/csv", "buffer": body.encode()}
    page.set_input_files("#file", file)
    page.wait_for_selector("#forget:not([hidden])")
    assert page.inner_text("#status") == "x.csv: 3 rows."
    page.click("#go")
    page.wait_for_selector("#download:not([hidden])")
    with page.expect_download() as waiting:
        page.click("#download")
    text = waiting.value.path().read_bytes().decode()
    table = list(csv.reader(io.StringIO(text, newline="")))
    assert [row[:2] for row in table] == [
        *(["name", "PSMILES"], ['a, "b"\nc', "*CO*"], ["=1+1", ""], ["short", ""])
    ]
    assert [row[3] for row in table[1:]] == ["ok", "rejected", "rejected"]
    page.set_input_files("#file", file | {"buffer": b"a,b\n1,2\n"})
    page.wait_for_selector("#problem:not([hidden])")
    assert "its columns are: a, b" in page.inner_text("#problem")


def test_what_models_will_know_is_shown(page):
    value = {"value": -1.5, "lower": -2, "upper": 0.25, "distance": 0.1, "unit": "eV"}
    row = {"psmiles": "*CO*", "canonical": "*CO*", "status": "ok", "reason": ""}
    rows = [row | {"values": {"egc": value | {"in_domain": inside}}} for inside in (True, False)]
    answer = json.dumps({"properties": ["egc"], "rows": rows})
    page.route("**/predict", lambda route: route.fulfill(body=answer))
    page.uncheck("#properties input[value=nc]")
    page.fill("#text", "*CO*\n*CO*")
    page.click("#go")
    page.wait_for_selector("#download:not([hidden])")
    shown = [row[2] for row in cells(page)]
    assert "−1.500" in shown[0]
    assert "−2.000 to 0.2500" in shown[0]
    assert "in domain" in shown[0]
    assert "outside the domain" in shown[1]


def test_it_has_names_and_contrast(page):
    page.click("#go")
    page.wait_for_selector("#download:not([hidden])")
    nameless = """[...document.querySelectorAll('input,textarea,button,img,progress')].filter(e =>
      !(e.labels && e.labels.length) && !e.innerText && !e.alt && !e.getAttribute('aria-label'))
      .map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    contrast = """() => {
      const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
      const behind = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
      return [...document.querySelectorAll('p,label,legend,button,a,th,td,span,h1,h2,textarea')]
        .filter(e => e.offsetParent && !e.disabled).map(e => {
          const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => x - y);
          return [(b + .05) / (a + .05), e.outerHTML.slice(0, 90)]; })
        .filter(([ratio]) => ratio < 4.5); }"""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(contrast) == []
