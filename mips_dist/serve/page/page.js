// The page: text or csv in, /predict in parts, a table, pictures, csv out. Whatever comes from a
// user or a server is set as text, never as markup.
import { outputTable, parseCsv, toCsv } from "./table.js";

const PART = 16; // polymers in one request: a table that grows, and a short wait to stop
const MAX_TRIES = 8;
const MAX_SHOWN = 500; // rows; the download has all of them
const $ = (id) => document.getElementById(id);
let models = [], pictures = {}, file = null, done = null, stopping = null;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function say(text) { $("status").textContent = text; }

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

const inUnit = (unit) => (unit && unit !== "1" ? ` / ${unit}` : "");

async function start() {
  try {
    const answer = await fetch("models");
    if (!answer.ok) throw new Error();
    ({ models, pictures } = await answer.json());
  } catch {
    complain("The server does not answer; is it still running? Load the page again.");
    $("go").disabled = true;
    return;
  }
  for (const [number, model] of models.entries()) {
    const label = element("label");
    const box = element("input", "", { type: "checkbox", value: model.property });
    box.checked = number < 2;
    const words = [model.description, model.unit === "1" ? "" : model.unit].filter(Boolean).join(", ");
    const text = element("span", model.property + (words ? `: ${words}` : ""));
    if (model.r2 !== null) text.append(element("span", ` (R² ${model.r2.toFixed(2)})`, { class: "soft" }));
    label.append(box, text);
    $("properties").append(label);
  }
}

function readInput() {
  if (file) return file;
  const texts = $("text").value.split(/\r?\n/).map((t) => t.trim()).filter(Boolean);
  return { header: ["psmiles"], rows: texts.map((t) => [t]), column: 0 };
}

async function openFile() {
  complain("");
  const chosen = $("file").files[0];
  if (!chosen) return;
  try {
    const [header, ...rows] = parseCsv(await chosen.text());
    const names = (header ?? []).map((name) => name.trim().toLowerCase());
    const column = names.includes("psmiles") ? names.indexOf("psmiles") : names.indexOf("smiles");
    if (column < 0) throw new Error(`it has no column psmiles or smiles; its columns are: ${(header ?? []).join(", ") || "none"}`);
    if (!rows.length) throw new Error("it has a header and no rows");
    file = { header, rows, column };
  } catch (error) {
    complain(`${chosen.name}: ${error.message}.`);
    $("file").value = "";
    return;
  }
  $("text").disabled = true;
  $("forget").hidden = false;
  say(`${chosen.name}: ${file.rows.length} rows.`);
}

function forgetFile() {
  file = null;
  $("file").value = "";
  $("text").disabled = false;
  $("forget").hidden = true;
  say("");
  $("text").focus();
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

async function ask(psmiles, properties, signal) {
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      answer = await fetch("predict", {
        method: "POST", signal,
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ psmiles, properties }),
      });
    } catch (error) {
      if (signal.aborted || attempt === MAX_TRIES) throw signal.aborted ? error : new Error("the server does not answer");
      await pause(1, signal);
      continue;
    }
    if (answer.ok) return (await answer.json()).rows;
    if ((answer.status !== 503 && answer.status !== 500) || attempt === MAX_TRIES) {
      throw new Error((await answer.json().catch(() => ({}))).detail ?? `status ${answer.status}`);
    }
    await pause(Number(answer.headers.get("Retry-After")) || 1, signal);
  }
}

async function predict(event) {
  event.preventDefault();
  complain("");
  const input = readInput();
  const properties = [...$("properties").querySelectorAll("input:checked")].map((box) => box.value);
  if (!input.rows.length) { complain("Give at least one P-SMILES."); $("text").focus(); return; }
  if (!properties.length) { complain("Choose at least one property."); return; }
  const texts = input.rows.map((row) => (row[input.column] ?? "").trim());
  const seen = new Map();
  stopping = new AbortController();
  done = { input, properties, results: [] };
  showHead(properties);
  $("rows").replaceChildren();
  $("results").hidden = false;
  setBusy(true, texts.length);
  try {
    for (let first = 0; first < texts.length; first += PART) {
      const rows = await ask(texts.slice(first, first + PART), properties, stopping.signal);
      for (const row of rows) {
        noteTwin(row, done.results.length, seen);
        done.results.push(row);
        if (done.results.length <= MAX_SHOWN) $("rows").append(rowOf(row, properties));
      }
      $("progress").value = done.results.length;
    }
  } catch (error) {
    if (!stopping.signal.aborted) complain(`Not all polymers were predicted: ${error.message}.`);
  }
  setBusy(false);
  const rejected = done.results.filter((row) => row.status !== "ok").length;
  const unshown = Math.max(0, done.results.length - MAX_SHOWN);
  say(`${done.results.length} of ${texts.length} polymers done${rejected ? `, ${rejected} rejected` : ""}`
    + `${unshown ? `; ${unshown} more rows are in the download` : ""}.`);
  $("download").hidden = !done.results.length;
}

// The server compares the rows of one request; here they are compared over all of them.
function noteTwin(row, number, seen) {
  if (!row.canonical) return;
  const remark = row.reason.replace(/(; )?same polymer as row \d+$/, "");
  const first = seen.get(row.canonical);
  if (first === undefined) seen.set(row.canonical, number);
  const note = first === undefined ? "" : `same polymer as row ${first}`;
  row.reason = [remark, note].filter(Boolean).join("; ");
}

function setBusy(isBusy, total = 0) {
  $("go").disabled = isBusy;
  $("stop").hidden = $("progress").hidden = !isBusy;
  if (!isBusy) return;
  $("download").hidden = true;
  $("progress").max = total;
  $("progress").value = 0;
  say(`Predicting ${total} polymers.`);
}

function showHead(properties) {
  const units = Object.fromEntries(models.map((model) => [model.property, model.unit]));
  const names = ["Repeat unit", "Polymer", ...properties.map((name) => name + inUnit(units[name]))];
  $("head").replaceChildren(...names.map((name) => element("th", name, { scope: "col", role: "columnheader" })));
  $("legend").textContent = "";
}

function rowOf(row, properties) {
  const line = element("tr", "", { role: "row" });
  const picture = element("td", "", { role: "cell", class: "picture" });
  const name = element("th", "", { scope: "row", role: "rowheader" });
  name.append(element("span", row.psmiles || "(empty)", { class: "psmiles" }));
  if (row.canonical) {
    picture.append(pictureOf(row.canonical));
    if (row.canonical !== row.psmiles) name.append(element("span", `canonical: ${row.canonical}`, { class: "note psmiles" }));
  }
  if (row.reason) {
    const isBad = row.status !== "ok";
    name.append(element("span", (isBad ? "rejected, " : "") + row.reason, { class: isBad ? "note bad" : "note" }));
  }
  line.append(picture, name, ...properties.map((property) => cellOf(row.canonical, property, row.values[property])));
  return line;
}

const pictureAddress = (query) => `picture.svg?${new URLSearchParams(query)}`;

function pictureOf(canonical) {
  const address = (kind) => pictureAddress({ psmiles: canonical, kind });
  const image = element("img", "", { src: address("unit"), alt: `repeat unit of ${canonical}`, loading: "lazy", width: 240, height: 150 });
  image.addEventListener("error", () => {
    image.replaceWith(element("span", "no picture", { class: "note" }));
  });
  const box = document.createElement("div");
  box.append(image);
  for (const [kind, words] of Object.entries(pictures)) {
    if (kind === "unit" || kind === "why") continue;
    box.append(element("a", kind, { href: address(kind), target: "_blank", rel: "noopener", "aria-label": `${words} of ${canonical}, in a new tab` }));
  }
  return box;
}

function cellOf(canonical, property, found) {
  const cell = element("td", "", { role: "cell", "data-label": property + inUnit(found?.unit) });
  if (!found) {
    cell.append(element("span", "none", { class: "note" }));
    return cell;
  }
  cell.append(element("span", shown(found.value), { class: "value" }));
  if (found.lower !== null) {
    cell.append(element("span", `${shown(found.lower)} to ${shown(found.upper)}`, { class: "note" }));
    $("legend").textContent = "Below a value: the interval that holds nine values in ten, and whether the polymer is like those that the model was trained on.";
  } else if (!$("legend").textContent) {
    $("legend").textContent = "These models have no calibration, so their values come without an interval.";
  }
  if (found.in_domain !== null) {
    const words = found.in_domain ? "✓ in domain" : "⚠ outside the domain";
    cell.append(element("span", words, { class: found.in_domain ? "note good" : "note bad" }));
  }
  const why = pictureAddress({ psmiles: canonical, kind: "why", property });
  cell.append(element("a", "why", { href: why, target: "_blank", rel: "noopener", "aria-label": `${pictures.why} of ${property} of ${canonical}, in a new tab` }));
  return cell;
}

const shown = (value) => Number(value).toPrecision(4).replace("-", "\u2212");

function download() {
  const input = { ...done.input, rows: done.input.rows.slice(0, done.results.length) };
  const text = toCsv(outputTable(input, done.results, done.properties));
  const link = element("a", "", { download: "predictions.csv" });
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

$("form").addEventListener("submit", predict);
$("file").addEventListener("change", openFile);
$("forget").addEventListener("click", forgetFile);
$("stop").addEventListener("click", () => stopping.abort());
$("download").addEventListener("click", download);
start();
