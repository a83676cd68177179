// Copy a block of code.
for (const block of document.querySelectorAll("pre")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button"), text = block.textContent;
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  });
  block.append(button);
}

// Tables: sort by a column (its numbers, or else its texts; again for the other direction), and cards on a phone.
for (const head of document.querySelectorAll("thead th")) {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  table.classList.add("cards");
  if (!head.textContent.trim()) continue;
  for (const row of body.rows) row.cells[column].dataset.label = head.textContent.trim();
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

// Paper has nothing to open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
