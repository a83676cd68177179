// Enlarge a picture: click, or Enter on it; arrow keys go to its neighbours, Escape closes.
const pictures = [...document.querySelectorAll("main img")];
if (pictures.length) {
  const box = document.createElement("dialog"), large = document.createElement("img");
  const words = document.createElement("p"), buttons = document.createElement("p");
  box.className = "lightbox";
  box.setAttribute("aria-label", "picture");
  let at = 0;
  const turn = by => {
    at = (at + by + pictures.length) % pictures.length;
    const { src, alt, dataset, naturalWidth, naturalHeight } = pictures[at];
    const shape = naturalWidth / naturalHeight;
    large.src = src;
    large.alt = alt;
    large.className = pictures[at].className;
    large.style.width = `min(92vw, ${(75 * shape).toFixed(2)}vh)`;
    words.textContent = alt + (dataset.words ? ` (${dataset.words})` : "");
  };
  for (const [label, action] of [["previous", () => turn(-1)], ["next", () => turn(1)], ["close", () => box.close()]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", action);
    buttons.append(button, " ");
  }
  box.append(large, words, buttons);
  box.addEventListener("keydown", event => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
  box.addEventListener("click", event => { if (event.target === box) box.close(); });
  document.body.append(box);
  pictures.forEach((picture, number) => {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    const open = () => { at = number; turn(0); box.showModal(); };
    picture.addEventListener("click", open);
    picture.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open();
    });
  });
  box.addEventListener("close", () => pictures[at].focus());
}

// Base and tuned side by side, or over one another with a line to move.
for (const choice of document.querySelectorAll(".choice")) {
  const section = choice.closest("section"), button = choice.querySelector("button");
  choice.hidden = false;
  button.addEventListener("click", () => {
    const on = button.ariaPressed !== "true";
    button.ariaPressed = on;
    for (const pair of section.querySelectorAll(".pair")) pair.classList.toggle("wiped", on);
  });
  for (const pair of section.querySelectorAll(".pair")) {
    const input = pair.querySelector("input");
    input.addEventListener("input", () => pair.style.setProperty("--at", `${input.value}%`));
  }
}

// Show one grid below the first; without this script they all stand under one another.
const slider = document.querySelector(".slider");
if (slider) {
  const grids = document.querySelectorAll("figure.step"), input = slider.querySelector("input");
  const show = () => {
    grids.forEach((grid, number) => { grid.hidden = number != input.value; });
    input.ariaValueText = grids[input.value].querySelector("figcaption").textContent.trim();
  };
  slider.hidden = false;
  input.addEventListener("input", show);
  show();
}
