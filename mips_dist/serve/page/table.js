// csv in and out, as RFC 4180 has it: quoted cells, doubled quotes, any line end.

export function parseCsv(text) {
  const rows = [];
  let row = [], cell = "", isQuoted = false;
  const endRow = () => {
    row.push(cell);
    if (row.length > 1 || row[0] !== "") rows.push(row);
    row = []; cell = "";
  };
  for (let i = text.charCodeAt(0) === 0xfeff ? 1 : 0; i < text.length; i++) {
    const c = text[i];
    if (isQuoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += c; i++; }
      else isQuoted = false;
    } else if (c === '"' && cell === "") isQuoted = true;
    else if (c === ",") { row.push(cell); cell = ""; }
    else if (c === "\n" || c === "\r") {
      if (c === "\r" && text[i + 1] === "\n") i++;
      endRow();
    } else cell += c;
  }
  if (cell !== "" || row.length) endRow();
  return rows;
}

const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

export const toCsv = (rows) => rows.map((row) => row.map(quoted).join(",") + "\r\n").join("");

// The columns and their order are those of `mips predict`.
const ENDINGS = ["", "_lower", "_upper", "_distance", "_in_domain", "_unit"];

export function outputTable(input, results, properties) {
  const own = ["canonical", "status", "reason"];
  const added = properties.flatMap((name) => ENDINGS.map((ending) => name + ending));
  const text = (value) => (value === null || value === undefined ? "" : String(value));
  const body = results.map((row, i) => [
    ...input.header.map((_, column) => input.rows[i][column] ?? ""),
    row.canonical, row.status, row.reason,
    ...properties.flatMap((name) => {
      const v = row.values[name];
      return v ? [v.value, v.lower, v.upper, v.distance, v.in_domain, v.unit].map(text)
        : ENDINGS.map(() => "");
    }),
  ]);
  return [[...input.header, ...own, ...added], ...body];
}
