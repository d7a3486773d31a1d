"use strict";
// The attention view: the weights are the alpha channel of each head's picture.
const SVG = "http://www.w3.org/2000/svg";
function drawn(parent, name, values, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
function weights(image, rows, columns) {
  const canvas = document.createElement("canvas");
  canvas.width = columns; canvas.height = rows;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, columns, rows);
  const pixels = context.getImageData(0, 0, columns, rows).data;
  return (row, column) => pixels[4 * (row * columns + column) + 3] / 255;
}
for (const figure of document.querySelectorAll("figure.heads")) {
  const { queries, keys } = JSON.parse(figure.querySelector("script").textContent);
  const buttons = [...figure.querySelectorAll(".thumbs button")];
  const which = figure.querySelector(".which"), select = figure.querySelector("select.query");
  const lines = figure.querySelector(".lines-of-attention"), grid = figure.querySelector(".grid-of-weights");
  select.append(new Option("all", -1), ...queries.map((token, number) => new Option(`${number + 1}. ${token}`, number)));
  let chosen = buttons[0];
  function show() {
    const one = Number(select.value), weight = weights(chosen.firstElementChild, queries.length, keys.length);
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
    const place = `Layer ${chosen.dataset.layer}, head ${chosen.dataset.head}`;
    const ranked = one < 0 ? [] : keys.map((token, column) => [weight(one, column), token]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    const said = chosen.title.split(": ").slice(1).join(": ");
    which.textContent = one < 0 ? `${place}: ${said}.` : `${place}: ${queries[one]} looks at ${ranked.map(([share, token]) => `${token} ${Math.round(100 * share)} %`).join(", ")}.`;
    drawLines(weight, one);
    drawGrid();
  }
  function drawLines(weight, one) {
    const step = 20, rows = Math.max(queries.length, keys.length), shown = token => token.length > 16 ? token.slice(0, 15) + "…" : token;
    lines.replaceChildren();
    lines.setAttribute("viewBox", `0 0 360 ${step * rows + 10}`);
    queries.forEach((_, row) => {
      if (one >= 0 && row !== one) return;
      keys.forEach((_, column) => {
        const share = weight(row, column);
        if (share > 0.02) drawn(lines, "path", { class: "beam", d: `M124 ${step * row + 14}L236 ${step * column + 14}`, "stroke-opacity": Math.min(1, share).toFixed(3) });
        if (one >= 0 && share > 0.004) drawn(lines, "rect", { x: 238, y: step * column + 4, width: 120, height: step - 2, "fill-opacity": (share * 0.6).toFixed(3) });
      });
    });
    queries.forEach((token, row) => {
      const text = drawn(lines, "text", { x: 120, y: step * row + 18, "text-anchor": "end", class: row === one ? "on" : "" }, shown(token));
      text.addEventListener("click", () => { select.value = row === one ? -1 : row; show(); });
    });
    keys.forEach((token, column) => drawn(lines, "text", { x: 242, y: step * column + 18 }, shown(token)));
  }
  function drawGrid() {
    const cell = 16, left = 112, top = 100, shown = token => token.length > 14 ? token.slice(0, 13) + "…" : token;
    grid.replaceChildren();
    grid.setAttribute("viewBox", `0 0 ${left + cell * keys.length + 60} ${top + cell * queries.length + 4}`);
    grid.style.maxWidth = `${left + cell * keys.length + 60}px`;
    queries.forEach((token, row) => drawn(grid, "text", { x: left - 6, y: top + cell * row + 12, "text-anchor": "end" }, shown(token)));
    keys.forEach((token, column) => drawn(grid, "text", { transform: `translate(${left + cell * column + 11} ${top - 5}) rotate(-55)` }, shown(token)));
    drawn(grid, "image", { x: left, y: top, width: cell * keys.length, height: cell * queries.length, preserveAspectRatio: "none", href: chosen.firstElementChild.src });
    drawn(grid, "rect", { x: left, y: top, width: cell * keys.length, height: cell * queries.length, fill: "none", stroke: "currentColor", "stroke-opacity": 0.3 });
  }
  for (const button of buttons) button.addEventListener("click", () => { chosen = button; show(); });
  select.addEventListener("change", show);
  figure.classList.add("ready");
  const pictures = buttons.map(button => button.firstElementChild);
  Promise.all(pictures.map(picture => picture.decode())).then(show);
}
