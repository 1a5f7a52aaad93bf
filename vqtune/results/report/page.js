"use strict";
// Draws every figure in the colours of the page, light or dark; the switch and the system's setting both redraw them.
// Traces with meta "trials" hold trial numbers as their text; `told` has what is said of each, once.
const { figures: specs, told } = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function themed(spec) {
  const ink = colour("--ink"), soft = colour("--soft"), grid = colour("--grid"), card = colour("--card");
  const layout = structuredClone(spec.layout);
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink };
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink };
  layout.hoverlabel = { bgcolor: card, bordercolor: soft, font: { color: ink }, align: "left" };
  for (const key of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
    const axis = layout[key];
    layout[key] = { gridcolor: grid, zeroline: false, linecolor: soft, tickcolor: soft, ticks: "outside", ticklen: 4,
                    automargin: true, ...axis, tickfont: { color: soft }, range: axis.range || undefined };
    layout[key].title = { standoff: 8, ...(axis.title || { text: "" }) };
  }
  for (const shape of layout.shapes || []) shape.line.color = ink;
  const data = structuredClone(spec.data);
  for (const trace of data.filter((one) => one.meta === "trials")) trace.text = trace.text.map((n) => told[n] ?? "");
  for (const trace of data.filter((one) => one.type === "parcoords")) {
    trace.labelfont = { color: ink, size: 12 };
    trace.tickfont = { color: ink, size: 11 };
    trace.rangefont = { color: "rgba(0,0,0,0)", size: 1 };
    // The palette ends in a tone of the page's opposite, so that the best lines stand out on both.
    trace.line.colorscale = root.dataset.theme === "dark"
      ? [[0, "#3b4552"], [0.6, "#4f7fae"], [1, "#ffd166"]] : [[0, "#d5dae1"], [0.6, "#7aa6d1"], [1, "#b3261e"]];
  }
  return { data, layout };
}

function drawAll() {
  const waiting = Object.entries(specs).map(([key, spec]) => {
    const { data, layout } = themed(spec);
    return Plotly.react("plot-" + key, data, layout, { responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  });
  Promise.all(waiting).then(() => { document.body.dataset.drawn = waiting.length; });
}

function setTheme(name) {
  root.dataset.theme = name;
  drawAll();
}

function sortTable(table, column) {
  const body = table.tBodies[0];
  const down = table.dataset.sorted === String(column);
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === "" || right === "") return (left === "") - (right === "");  // empty cells stay last
    const order = left - right || String(left).localeCompare(right, undefined, { numeric: true });
    return down ? -order : order;
  });
  body.append(...rows);
  table.dataset.sorted = down ? "" : String(column);
}

document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
const trials = document.getElementById("trials");
trials.querySelectorAll("th button").forEach((button, i) => button.addEventListener("click", () => sortTable(trials, i)));
setTheme(location.hash === "#dark" || dark.matches ? "dark" : "light");
