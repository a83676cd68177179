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
