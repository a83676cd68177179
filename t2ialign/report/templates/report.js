// Read a curve: the nearest step's value, and the running mean in brackets, while the pointer is over it.
for (const svg of document.querySelectorAll("svg.curve")) {
  const readings = JSON.parse(svg.dataset.readings);
  const cursor = svg.querySelector(".cursor");
  const output = svg.parentElement.querySelector("output");
  const latest = output.textContent;
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const [x, step, value, mean] =
      readings.reduce((best, next) => Math.abs(next[0] - at) < Math.abs(best[0] - at) ? next : best);
    output.textContent = `step ${step}: ${value ?? "not finite"}` + (mean === null ? "" : ` (${mean})`);
    cursor.style.visibility = "visible";
    cursor.style.transform = `translateX(${x}px)`;
  });
  svg.addEventListener("pointerleave", () => {
    output.textContent = latest;
    cursor.style.visibility = "hidden";
  });
}
// Show one grid below the first; without this script they all stand under one another.
const slider = document.querySelector(".slider");
if (slider) {
  const grids = document.querySelectorAll("figure.step");
  const input = slider.querySelector("input");
  const show = () => {
    grids.forEach((grid, number) => { grid.hidden = number != input.value; });
    input.ariaValueText = grids[input.value].textContent.trim();
  };
  slider.hidden = false;
  input.addEventListener("input", show);
  show();
}
// Copy a block of code.
for (const block of document.querySelectorAll("pre")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button"), text = block.textContent;
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  });
  block.append(button);
}
// Sort a table by a column: its numbers, or else its texts; again for the other direction.
for (const head of document.querySelectorAll("thead th")) {
  if (!head.textContent.trim()) continue;
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  head.ariaSort = "none";
  head.tabIndex = 0;
  const sort = () => {
    const down = head.ariaSort === "descending";
    for (const other of head.parentElement.cells) if (other.ariaSort) other.ariaSort = "none";
    head.ariaSort = down ? "ascending" : "descending";
    const key = row => row.cells[column].textContent.trim();
    const number = row => { const n = parseFloat(key(row).replace("−", "-")); return Number.isNaN(n) ? -Infinity : n; };
    const rows = [...body.rows];
    const numeric = rows.some(row => number(row) !== -Infinity);
    rows.sort((a, b) => numeric ? number(a) - number(b) : key(a).localeCompare(key(b)));
    body.append(...(down ? rows : rows.reverse()));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
