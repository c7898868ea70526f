"use strict";
/* The gallery. Data comes in scripts, since a page on disk may not fetch; text goes in as text alone. */
const dagReport = (() => {
  const rows = JSON.parse(document.getElementById("data").textContent).rows;
  const NAMES = ["key", "picture", "clean", "preview", "outcome", "steps", "largest", "p", "first", "left", "leftPng"];
  const share = (left, image) => left / (image.first || 1);
  const OUTCOMES = [
    [0, "all"], [1, "fooled as float"], [2, "fooled as PNG"], [4, "unfinished"], [8, "no targets"], [16, "failed"]];
  const SORTS = {
    worst: (a, b) => share(b.left, b) - share(a.left, a) || share(b.leftPng, b) - share(a.leftPng, a) || b.steps - a.steps,
    largest: (a, b) => b.largest - a.largest,
    steps: (a, b) => b.steps - a.steps,
    // What has no targets is not changed: it comes last.
    visible: (a, b) => !a.first - !b.first || a.p - b.p,
    name: () => 0};
  const PER_PAGE = 60;
  const waiting = new Map();
  const loaded = new Map();
  const state = {row: 0, images: [], shown: [], page: 0, bit: 0, open: -1};
  const find = id => document.getElementById(id);

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "rect", "path", "line", "text", "title"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function load(row, part) {
    const name = JSON.stringify([row.name, part]);
    if (!loaded.has(name)) {
      loaded.set(name, new Promise((resolve, reject) => {
        waiting.set(name, resolve);
        const script = make("script", {src: `${row.url}/${part}.js`});
        script.onerror = () => reject(new Error(`${script.src} is missing`));
        document.head.append(script);
      }));
    }
    return loaded.get(name);
  }

  function take(name, content) {
    waiting.get(JSON.stringify(name))(content);
  }

  const stateOf = image => OUTCOMES.filter(([bit]) => bit & image.outcome).map(([, name]) => name).join(", ");
  const leftOf = image => image.left ? `: ${image.left} of ${counted(image.first, "target")} left`
    : image.leftPng ? `; as PNG ${counted(image.leftPng, "target")} left` : "";
  const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

  async function choose(number) {
    state.row = number;
    const row = rows[number];
    document.querySelectorAll("section.row").forEach(section => { section.hidden = Number(section.dataset.row) !== number; });
    if (find("row")) find("row").value = number;
    const listed = await load(row, "index");
    if (state.row !== number) return;
    state.images = listed.map((values, at) => Object.assign(
      {at}, ...NAMES.map((name, i) => ({[name]: values[i]}))));
    find("gallery-title").textContent = `Images of ${row.title}`;
    find("inexact").hidden = !state.images.some(image => image.clean.endsWith("_near.webp"));
    find("filters").replaceChildren(...OUTCOMES.map(([bit, name]) => {
      const count = state.images.filter(image => !bit || image.outcome & bit).length;
      const button = make("button", {type: "button", "aria-pressed": state.bit === bit, "data-bit": bit}, `${name} (${count})`);
      button.onclick = () => {
        state.bit = bit;
        for (const other of find("filters").children) other.setAttribute("aria-pressed", other === button);
        select();
      };
      return button;
    }));
    select();
  }

  function select() {
    const part = find("name").value.toLowerCase();
    state.shown = state.images.filter(image =>
      (!state.bit || image.outcome & state.bit) && image.key.toLowerCase().includes(part));
    state.shown.sort(SORTS[find("sort").value]);
    show(0);
  }

  function show(page) {
    const row = rows[state.row], pages = Math.max(1, Math.ceil(state.shown.length / PER_PAGE));
    state.page = Math.min(Math.max(page, 0), pages - 1);
    const start = state.page * PER_PAGE;
    find("tiles").replaceChildren(...state.shown.slice(start, start + PER_PAGE).map((image, i) => {
      const picture = make("img", {
        loading: "lazy", alt: `Adversarial image ${image.key}`,
        src: `${row.url}/${image.picture}${image.preview ? "_small" : ""}.webp`});
      const tile = make("button", {type: "button", class: "tile"}, picture,
        make("span", {class: "name"}, image.key), make("span", {}, stateOf(image) + leftOf(image)),
        make("span", {}, `${counted(image.steps, "step")}, largest change ${image.largest.toFixed(1)}`));
      tile.onclick = () => open(start + i);
      return make("li", {}, tile);
    }));
    find("count").textContent = `${counted(state.shown.length, "image")} of ${state.images.length}`;
    find("page").textContent = `page ${state.page + 1} of ${pages}`;
    find("previous").disabled = state.page === 0;
    find("next").disabled = state.page === pages - 1;
  }

  async function open(at) {
    if (at < 0 || at >= state.shown.length) return;
    state.open = at;
    const row = rows[state.row], image = state.shown[at];
    const detail = (await load(row, Math.floor(image.at / row.chunk)))[image.at % row.chunk];
    if (state.open !== at) return;
    const base = `${row.url}/${image.picture}`, clean = `report_files/clean/${image.clean}`;
    find("viewer-title").textContent = `${image.key} (${at + 1} of ${state.shown.length})`;
    find("viewer-facts").textContent = `${row.title}: ${stateOf(image)}. ${counted(image.steps, "step")}; ` +
      `targets left ${image.left} of ${image.first}, on the saved PNG ${image.leftPng}; largest change ${image.largest.toFixed(2)} grey levels; p × 1000 is ${(1000 * image.p).toFixed(2)}.`;
    picture("clean", clean, `Clean image ${image.key}`);
    picture("adversarial", `${base}.webp`, `Adversarial image ${image.key}`);
    picture("change", `${base}_change.webp`, `What the attack changes in ${image.key}`);
    find("change-text").textContent = `Change: grey is none, black and white are -${image.largest.toFixed(1)} ` +
      `and +${image.largest.toFixed(1)} grey levels in each of red, green and blue`;
    prediction(row, "before", "Prediction on the clean image", detail.before, clean);
    prediction(row, "after", `Prediction on the attacked image, before rounding: ${counted(image.left, "target")} active`, detail.after, `${base}.webp`);
    prediction(row, "png", `Prediction on the saved PNG: ${counted(image.leftPng, "target")} active`, detail.png, `${base}.webp`);
    classes(row, detail);
    curve(detail.counts);
    blink(false);
    find("earlier").disabled = at === 0;
    find("later").disabled = at === state.shown.length - 1;
    if (!find("viewer").open) find("viewer").showModal();
  }

  function picture(id, source, alt) {
    find(id).src = source;
    find(id).alt = alt;
  }

  function named(row, seen) {
    const named = seen.classes.map(([label, amount]) => seen.boxes ? `${amount} ${row.classes[label]}` : `${row.classes[label]} ${amount}`);
    return named.join(", ") || "nothing";
  }

  /* Names of boxes, inside their upper left corners; one that would cover another goes below it. */
  function labels(row, boxes, width, size) {
    const places = [];
    return boxes.map(([x0, y0,,, label]) => {
      const name = row.classes[label], long = 0.6 * size * name.length;
      const x = Math.max(Math.min(x0 + size / 4, width - long), 0);
      let y = Math.max(y0, 0) + size;
      const covered = () => places.find(([left, floor, right]) => left < x + long && x < right && Math.abs(floor - y) < size);
      while (covered()) y = covered()[1] + 1.01 * size;
      places.push([x, y, x + long]);
      return make("text", {x, y, style: `font-size: ${size}px`}, name);
    });
  }

  function prediction(row, id, title, seen, source) {
    const figure = find(id);
    figure.hidden = !seen;
    if (!seen) return;
    const alt = `${title}: ${named(row, seen)}`, parts = [];
    if (seen.labels) parts.push(make("img", {src: `${row.url}/${seen.labels}`, alt}));
    if (seen.boxes) {
      const under = make("img", {src: source, alt}), over = make("svg", {"aria-hidden": "true"});
      under.onload = () => {
        const [width, height] = [under.naturalWidth, under.naturalHeight], size = width / 20;
        over.setAttribute("viewBox", `0 0 ${width} ${height}`);
        over.replaceChildren(...seen.boxes.flatMap(([x0, y0, x1, y1, label, score]) => {
          const place = {x: x0, y: y0, width: x1 - x0 + 1, height: y1 - y0 + 1};
          return [make("rect", {class: "rim", ...place}),
            make("rect", {style: `stroke: ${row.colours[label]}`, ...place},
              make("title", {}, `${row.classes[label]} ${score}`))];
        }), ...labels(row, seen.boxes, width, size));
      };
      parts.push(make("div", {class: "over"}, under, over));
    }
    const kept = seen.labels || seen.boxes;
    figure.replaceChildren(...parts, make("figcaption", {}, kept ? title : `${title}. No picture of it is kept; the table has its classes.`));
  }

  /* What the model saw before, after, and in the saved file: class by class. */
  function classes(row, detail) {
    const looks = [["clean", detail.before], ["attacked", detail.after], ["PNG", detail.png]].filter(([, seen]) => seen);
    const labels = [...new Set(looks.flatMap(([, seen]) => seen.classes.map(([label]) => label)))];
    const boxes = looks.some(([, seen]) => seen.boxes);
    const head = make("tr", {}, ...["class", ...looks.map(([name]) => name)].map(name => make("th", {scope: "col"}, name)));
    const lines = labels.map(label => make("tr", {},
      make("th", {scope: "row"}, make("span", {class: "swatch", style: `background: ${row.colours[label]}`}), row.classes[label]),
      ...looks.map(([, seen]) => make("td", {}, (seen.classes.find(([other]) => other === label) || [0, boxes ? "–" : "< 1%"])[1]))));
    find("classes").replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines));
    find("classes-text").textContent = !looks.length ? "No prediction of this image is kept." : boxes
      ? "Objects that the model detects with a score of 0.5 or more" : "Share of the pixels that the model gives a class, of those that are scored";
  }

  function curve(counts) {
    const [width, height, left, top, bottom] = [470, 230, 52, 10, 36];
    const most = Math.max(...counts, 1), last = Math.max(counts.length - 1, 1);
    const x = i => left + (width - left - 12) * i / last, y = n => top + (height - top - bottom) * (1 - n / most);
    const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Targets left: ${counts[0]} at first, ${counts.at(-1)} after ${counted(counts.length - 1, "step")}`},
      make("line", {class: "grid", x1: left, x2: width - 12, y1: y(0), y2: y(0)}),
      make("line", {class: "grid", x1: left, x2: left, y1: y(0), y2: y(most)}),
      make("path", {class: "curve", d: counts.map((n, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(n).toFixed(1)}`).join("")}));
    for (const n of [0, most]) svg.append(make("text", {x: left - 5, y: y(n) + 4, "text-anchor": "end"}, n));
    for (const i of [0, last]) svg.append(make("text", {x: x(i), y: height - 20, "text-anchor": i ? "end" : "start"}, i));
    svg.append(make("text", {x: (left + width) / 2, y: height - 5, "text-anchor": "middle"}, "step"));
    find("curve").replaceChildren(svg);
  }

  function blink(alone) {
    find("blink").setAttribute("aria-pressed", alone);
    find("adversarial").style.visibility = alone ? "hidden" : "visible";
  }

  function slide() {
    find("compare").style.setProperty("--shown", `${100 - find("slider").value}%`);
  }

  function colours(dark) {
    document.documentElement.classList.toggle("dark", dark);
    find("theme").setAttribute("aria-pressed", dark);
  }

  /* Of the cell that is pointed at, or that arrow keys have reached, the line below says all. */
  function readable(region) {
    const lines = [...region.querySelectorAll("tbody tr")].map(line => [...line.querySelectorAll("td")]);
    let [row, column] = [-1, -1];
    const go = (down, across) => {
      lines[row]?.[column]?.classList.remove("here");
      row = Math.min(Math.max(down, 0), lines.length - 1);
      column = Math.min(Math.max(across, 0), lines[row].length - 1);
      const cell = lines[row][column];
      cell.classList.add("here");
      cell.scrollIntoView({block: "nearest", inline: "nearest"});
      region.nextElementSibling.textContent = cell.title || "not scored";
    };
    region.addEventListener("pointerover", event => {
      const down = lines.findIndex(line => line.includes(event.target));
      if (down >= 0) go(down, lines[down].indexOf(event.target));
    });
    region.addEventListener("keydown", event => {
      const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
      if (!step) return;
      event.preventDefault();
      go(row + (row < 0 ? 1 : step[0]), column + (column < 0 ? 1 : step[1]));
    });
  }

  document.querySelectorAll(".heat").forEach(readable);
  find("place").textContent = decodeURIComponent(location.pathname);
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  colours(prefers.matches);
  prefers.addEventListener("change", event => colours(event.matches));
  find("theme").onclick = () => colours(!document.documentElement.classList.contains("dark"));
  if (rows.length) {
    if (find("row")) find("row").onchange = event => choose(Number(event.target.value));
    document.querySelectorAll("a[data-row]").forEach(link => {
      link.addEventListener("click", () => choose(Number(link.dataset.row)));
    });
    document.querySelectorAll("button[data-key]").forEach(button => {
      button.onclick = () => {
        const at = state.shown.findIndex(image => image.key === button.dataset.key);
        if (at >= 0) return open(at);
        state.bit = 0;
        find("name").value = "";
        choose(state.row).then(() => open(state.shown.findIndex(image => image.key === button.dataset.key)));
      };
    });
    find("sort").onchange = select;
    find("name").oninput = select;
    find("previous").onclick = () => show(state.page - 1);
    find("next").onclick = () => show(state.page + 1);
    find("earlier").onclick = () => open(state.open - 1);
    find("later").onclick = () => open(state.open + 1);
    find("close").onclick = () => find("viewer").close();
    find("blink").onclick = () => blink(find("blink").getAttribute("aria-pressed") !== "true");
    find("slider").oninput = slide;
    find("viewer").addEventListener("keydown", event => {
      if (event.target.id === "slider" && event.key.startsWith("Arrow")) return;
      if (event.key === "ArrowLeft") open(state.open - 1);
      else if (event.key === "ArrowRight") open(state.open + 1);
      else if (event.key.toLowerCase() === "b") find("blink").click();
    });
    addEventListener("DOMContentLoaded", () => choose(0));
  }
  return {take};
})();
