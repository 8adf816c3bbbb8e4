"use strict";
// Turns structures. All words in it come from the page's own data and are drawn or set as text.
for (const figure of document.querySelectorAll("figure.view")) view(figure);

function view(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const canvas = figure.querySelector("canvas");
  const button = figure.querySelector("button");
  const output = figure.querySelector("output");
  const context = canvas.getContext("2d");
  const points = [...data.atoms.map((atom) => atom.at), ...data.edges.flat()];
  const size = Math.max(...points.map((p) => Math.hypot(...p))) + 0.7;
  let turned, zoom, named, byElement = false, places = [];
  reset();

  function reset() {
    turned = times(about(0, 0.3), about(1, -0.35));
    zoom = 1;
    name(data.order[0]);
  }

  function draw() {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width || !height) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const scale = fitted(width, height);
    const look = getComputedStyle(canvas);
    const ink = look.getPropertyValue("--ink"), grey = look.getPropertyValue("--grey");
    const place = (p) => {
      const [x, y, z] = turned.map((row) => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]);
      return [width / 2 + scale * x, height / 2 - scale * y, z];
    };
    places = data.atoms.map((atom) => place(atom.at));
    const items = [];
    for (const [a, b] of data.edges) {
      const [from, to] = [place(a), place(b)];
      items.push([(from[2] + to[2]) / 2, () => line(from, to, 1, grey)]);
    }
    for (const [a, b] of data.bonds) {
      const [from, to] = [place(outside(a, b)), place(outside(b, a))];
      items.push([(from[2] + to[2]) / 2, () => line(from, to, Math.max(2, 0.16 * scale), grey)]);
    }
    data.atoms.forEach((atom, i) => items.push([places[i][2], () => ball(i, atom, scale, ink)]));
    items.sort((a, b) => a[0] - b[0]).forEach(([, paint]) => paint());
  }

  function fitted(width, height) {
    return (zoom * Math.min(width, height / 0.85)) / (2 * size);
  }

  function outside(a, b) {
    const [start, end] = [data.atoms[a], data.atoms[b].at];
    const share = (0.9 * start.radius) / Math.hypot(...end.map((x, k) => x - start.at[k]));
    return start.at.map((x, k) => x + share * (end[k] - x));
  }

  function line(from, to, thick, colour) {
    context.beginPath();
    context.moveTo(from[0], from[1]);
    context.lineTo(to[0], to[1]);
    context.lineWidth = thick;
    context.strokeStyle = colour;
    context.stroke();
  }

  function ball(i, atom, scale, ink) {
    const [x, y] = places[i], radius = atom.radius * scale;
    const light = context.createRadialGradient(x - 0.4 * radius, y - 0.4 * radius, 0, x, y, radius);
    light.addColorStop(0, "rgba(255,255,255,0.55)");
    light.addColorStop(0.5, "rgba(255,255,255,0)");
    light.addColorStop(1, "rgba(0,0,0,0.3)");
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = byElement ? atom.element : atom.error;
    context.fill();
    context.fillStyle = light;
    context.fill();
    context.lineWidth = 0.75;
    context.strokeStyle = ink;
    context.stroke();
    if (i !== named) return;
    context.beginPath();
    context.arc(x, y, radius + 3, 0, 2 * Math.PI);
    context.lineWidth = 2;
    context.stroke();
  }

  function name(i) {
    named = i;
    output.textContent = data.atoms[i].words;
    draw();
  }

  function turn(x, y) {
    turned = times(about(0, y), times(about(1, x), turned));
    draw();
  }

  const keys = {
    ArrowLeft: () => turn(-0.15, 0), ArrowRight: () => turn(0.15, 0),
    ArrowUp: () => turn(0, -0.15), ArrowDown: () => turn(0, 0.15),
    "+": () => { zoom = Math.min(8, zoom * 1.2); draw(); },
    "-": () => { zoom = Math.max(0.3, zoom / 1.2); draw(); },
    n: () => name(data.order[(data.order.indexOf(named) + 1) % data.order.length]),
    0: reset,
  };
  Object.assign(keys, { "=": keys["+"], "\u2212": keys["-"], N: keys.n });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });

  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) return turn(0.01 * event.movementX, 0.01 * event.movementY);
    const scale = fitted(canvas.clientWidth, canvas.clientHeight);
    const away = (i) => Math.hypot(places[i][0] - event.offsetX, places[i][1] - event.offsetY);
    const under = data.order.filter((i) => away(i) < scale * data.atoms[i].radius);
    const nearest = under.sort((a, b) => places[b][2] - places[a][2])[0] ?? -1;
    if (nearest >= 0 && nearest !== named) name(nearest);
  });
  button.addEventListener("click", () => {
    byElement = !byElement;
    button.setAttribute("aria-pressed", String(byElement));
    draw();
  });
  new ResizeObserver(draw).observe(canvas);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

function about(axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  return axis === 0 ? [[1, 0, 0], [0, c, -s], [0, s, c]] : [[c, 0, s], [0, 1, 0], [-s, 0, c]];
}

function times(a, b) {
  return a.map((row) => [0, 1, 2].map((k) => row[0] * b[0][k] + row[1] * b[1][k] + row[2] * b[2][k]));
}
