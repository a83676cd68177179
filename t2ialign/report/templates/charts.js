// Charts: read a step (pointer or arrow keys), zoom into a stretch of steps in all charts at once, smooth.
const charts = [...document.querySelectorAll("svg.curve[data-low]")].map(svg => {
  const plot = svg.querySelector(".plot"), output = svg.parentElement.querySelector("output");
  const [x, y, width, height] = plot.getAttribute("viewBox").split(" ").map(Number);
  const series = [...svg.querySelectorAll(".series")].map(group => ({
    group, name: group.dataset.name, readings: JSON.parse(group.dataset.readings), mean: group.querySelector(".mean"),
  }));
  const low = +svg.dataset.low, high = +svg.dataset.high, last = +svg.dataset.last;
  const ticks = ["x", "y"].map(axis => svg.querySelector(`.${axis}-ticks`));
  return {
    svg, plot, output, series, low, high, last, x, y, width, height, ticks, drawn: ticks.map(group => group.innerHTML),
    latest: output.textContent, window: [0, last], at: null,
    level: value => y + height - (value - low) / (high - low) * height,
  };
});

function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(size => size >= raw * 0.999);
  const first = Math.ceil(low / step), count = Math.floor(high / step) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, number) => (first + number) * step);
}

// Show the steps from..to: the plot's view box moves, and the values there decide its height.
function show(chart, from, to) {
  chart.window = [from, to] = [Math.max(0, from), Math.min(chart.last, to)];
  const whole = from <= 0 && to >= chart.last;
  const seen = chart.series.flatMap(one => one.readings).filter(([, step]) => step >= from && step <= to)
    .flatMap(([, , ...values]) => values).filter(value => value !== null);
  let [low, high] = whole || !seen.length ? [chart.low, chart.high] : [Math.min(...seen), Math.max(...seen)];
  if (!whole && seen.length) {
    const air = 0.05 * (high - low) || 0.05 * (chart.high - chart.low);
    [low, high] = [low - air, high + air];
  }
  const left = chart.x + from / chart.last * chart.width, width = (to - from) / chart.last * chart.width;
  chart.plot.setAttribute("viewBox", `${left} ${chart.level(high)} ${width} ${chart.level(low) - chart.level(high)}`);
  chart.svg.classList.toggle("zoomed", !whole);
  chart.ticks.forEach((group, axis) => { group.innerHTML = chart.drawn[axis]; });
  if (whole) return;
  const label = value => String(+value.toPrecision(5)), bottom = chart.y + chart.height;
  chart.ticks[0].innerHTML = ticks(from, to, 5).filter(Number.isInteger).map(step =>
    `<text x="${chart.x + (step - from) / (to - from) * chart.width}" y="${bottom + 13}" text-anchor="middle">${step}</text>`
  ).join("");
  chart.ticks[1].innerHTML = ticks(low, high, 5).map(value => {
    const y = bottom - (value - low) / (high - low) * chart.height;
    return `<path class="grid" d="M${chart.x} ${y}h${chart.width}"/>`
      + `<text x="${chart.x - 5}" y="${y + 3}" text-anchor="end">${label(value)}</text>`;
  }).join("");
}

function showAll(from, to) {
  if (to - from >= 1) for (const chart of charts) if (from < chart.last) show(chart, from, to);
}

function read(chart, step) {
  const nearest = readings => readings.reduce((best, next) =>
    Math.abs(next[1] - step) < Math.abs(best[1] - step) ? next : best);
  const found = chart.series.map(one => [one.name, nearest(one.readings)]);
  const [x, at] = found[0][1];
  const text = ([name, [, , value, mean, low, high]]) => (name ? name + " " : "") + (value ?? "not finite")
    + (mean === null ? "" : ` (${mean})`) + (low == null ? "" : ` [${low} to ${high}]`);
  chart.at = at;
  chart.output.textContent = `step ${at}: ` + found.map(text).join(" · ");
  const [from, to] = chart.window, place = chart.x + (at - from) / (to - from) * chart.width;
  const cursor = chart.svg.querySelector(".cursor");
  cursor.style.visibility = place >= chart.x && place <= chart.x + chart.width ? "visible" : "hidden";
  cursor.style.transform = `translateX(${place}px)`;
}

function forget(chart) {
  chart.at = null;
  chart.output.textContent = chart.latest;
  chart.svg.querySelector(".cursor").style.visibility = "hidden";
}

for (const chart of charts) {
  const stepAt = event => {
    const box = chart.svg.getBoundingClientRect(), [from, to] = chart.window;
    const x = (event.clientX - box.left) / box.width * chart.svg.viewBox.baseVal.width;
    return Math.min(to, Math.max(from, from + (x - chart.x) / chart.width * (to - from)));
  };
  let start = null;
  chart.svg.addEventListener("pointerdown", event => { start = [stepAt(event), event.clientX]; });
  chart.svg.addEventListener("pointermove", event => read(chart, stepAt(event)));
  chart.svg.addEventListener("pointerup", event => {
    if (start && Math.abs(event.clientX - start[1]) > 8) showAll(...[start[0], stepAt(event)].sort((a, b) => a - b));
    start = null;
  });
  chart.svg.addEventListener("pointerleave", () => forget(chart));
  chart.svg.addEventListener("blur", () => forget(chart));
  chart.svg.addEventListener("dblclick", () => showAll(0, Infinity));
  chart.svg.addEventListener("keydown", event => {
    const [from, to] = chart.window, steps = chart.series[0].readings.map(reading => reading[1]);
    const place = chart.at === null ? steps.length : steps.indexOf(chart.at), middle = chart.at ?? (from + to) / 2;
    const span = { "+": (to - from) / 2, "-": (to - from) * 2 }[event.key];
    if (event.key === "ArrowLeft") read(chart, steps[Math.max(0, place - 1)]);
    else if (event.key === "ArrowRight") read(chart, steps[Math.min(steps.length - 1, place + 1)]);
    else if (span) showAll(middle - span / 2, middle + span / 2);
    else if (event.key === "Escape") showAll(0, Infinity);
    else return;
    event.preventDefault();
  });
}

// The running mean over a chosen number of neighbours on either side.
function smooth(reach) {
  for (const chart of charts) for (const { readings, mean } of chart.series) {
    if (!mean) continue;
    let path = "", open = false;
    readings.forEach((reading, at) => {
      const near = readings.slice(Math.max(0, at - reach), at + reach + 1).map(one => one[2]).filter(v => v !== null);
      const value = near.length ? near.reduce((sum, one) => sum + one) / near.length : null;
      reading[3] = value === null ? null : +value.toPrecision(5);
      if (value !== null) path += `${open ? "L" : "M"}${reading[0]} ${chart.level(value).toFixed(1)}`;
      open = value !== null;
    });
    mean.setAttribute("d", path);
  }
}

for (const controls of document.querySelectorAll(".controls")) {
  const input = controls.querySelector(".smoothing"), output = controls.querySelector("output");
  const steps = Math.max(1, ...charts.flatMap(chart => chart.series.map(one => one.readings.length)));
  input.max = Math.min(50, Math.ceil(steps / 4));
  input.value = Math.max(2, Math.min(25, Math.floor(steps / 40)));
  const say = () => { output.textContent = input.value === "0" ? "off" : `± ${input.value} steps`; };
  input.addEventListener("input", () => { smooth(+input.value); say(); });
  controls.querySelector(".whole").addEventListener("click", () => showAll(0, Infinity));
  controls.hidden = !charts.length;
  say();
}
