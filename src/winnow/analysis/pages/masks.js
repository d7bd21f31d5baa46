"use strict";
// One run or two on the same tokens. i is a query, j a key, t an earlier query that voted; all count from 0.
// Text from a run or a file is only ever written with textContent.
(() => {
  const find = (name, within = document) => within.querySelector(name);
  const { tokens, runs } = JSON.parse(find("#data").textContent);
  const T = tokens.length, TRIANGLE = T * (T + 1) / 2;
  const MODES = {
    masks: "masks felt by the query (F)",
    weights: "attention of the query",
    votes: "votes that the query casts",
    shield: "protection left (shield)",
  };
  const MATRICES = ["weights", "masks", "votes", "damage", "protection", "shield"];
  const FULL = { masks: 50, votes: 10, shield: 50 }; // nats of the full colour
  const LISTED = 8;
  const state = { layer: 0, head: 0, show: "", query: T - 1, key: null };
  let noting = 0; // the timer that will put the state into the address
  let glance = null; // the query under the pointer on a heat map; null: the chosen one

  // Data: bfloat16, the lower triangle row by row. A layer's are unpacked when it is first shown.

  function unpacked(text) {
    const raw = atob(text), halves = new Uint16Array(raw.length / 2);
    for (let n = 0; n < halves.length; n++) halves[n] = raw.charCodeAt(2 * n) | (raw.charCodeAt(2 * n + 1) << 8);
    return halves;
  }

  function unpack(layer) {
    for (const name of MATRICES) if (typeof layer[name] === "string") layer[name] = unpacked(layer[name]);
  }

  const single = new Float32Array(1), bits = new Uint32Array(single.buffer);
  function real(half) {
    bits[0] = half << 16;
    return single[0];
  }
  const index = (n, i, j) => n * TRIANGLE + i * (i + 1) / 2 + j;
  const at = (matrix, n, i, j) => real(matrix[index(n, i, j)]);

  // What a run shows of the state: it may have fewer layers, heads and kinds of numbers than the other.

  function lens(run) {
    const layer = run.layers.find((one) => one.index === state.layer);
    if (layer === undefined) return null;
    unpack(layer);
    const head = Math.min(state.head, layer.heads - 1);
    const mask = layer.spread.length ? layer.spread[head] : 0;
    const show = layer[state.show] === undefined ? "weights" : state.show;
    return { layer, head, mask, show };
  }

  const part = (eye, name) => (name === "weights" ? eye.head : eye.mask);
  const value = (eye, name, i, j) => at(eye.layer[name], part(eye, name), i, j);

  // Colours and words.

  const colours = {};
  let pixels = {}; // of each kind of number, what each of the 65,536 looks like
  const maps = new Map(); // of each canvas of a heat map, what is drawn there
  function readColours() {
    const style = getComputedStyle(document.documentElement);
    if (style.getPropertyValue("--masks").trim() === colours.masks) return;
    pixels = {};
    maps.clear();
    for (const name of ["masks", "weights", "votes", "shield"]) colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  // A weight by its square root, nats by their logarithm: differences among small ones are seen, and none is cut off.
  const strength = (show, x) => 0.9 * Math.min(1, show === "weights" ? Math.sqrt(x) : Math.log1p(Math.abs(x)) / Math.log1p(FULL[show]));
  const colour = (show, x) => `rgba(${colours[x < 0 ? "weights" : show]}, ${strength(show, x).toFixed(3)})`;

  function pixelsOf(show) {
    if (pixels[show] !== undefined) return pixels[show];
    const found = new Uint8ClampedArray(4 << 16);
    const [own, opposite] = [show, "weights"].map((name) => colours[name].split(",").map(Number));
    for (let half = 0; half < 1 << 16; half++) {
      const x = real(half);
      found.set(x < 0 ? opposite : own, 4 * half);
      found[4 * half + 3] = 255 * strength(show, x);
    }
    return pixels[show] = new Uint32Array(found.buffer);
  }

  function number(x) {
    const size = Math.abs(x);
    if (x === 0) return "0";
    if (size >= 9.95e5 || size < 9.95e-5) return x.toExponential(1);
    if (size >= 99.5) return x.toFixed(0);
    return x.toPrecision(2);
  }
  const quoted = (text) => `\u201c${text.replaceAll("\n", "")}\u201d`;
  const named = (n) => `${n} ${quoted(tokens[n])}`;

  function made(tag, text = "", kind = "") {
    const element = document.createElement(tag);
    if (text !== "") element.textContent = text;
    if (kind !== "") element.className = kind;
    return element;
  }

  function bar(share, show) {
    const cell = made("td", "", "bar"), inside = made("i");
    inside.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    inside.style.background = `rgb(${colours[show]})`;
    cell.append(inside);
    return cell;
  }

  function row(cells, tag = "td") {
    const found = made("tr");
    for (const cell of cells) found.append(typeof cell === "string" ? made(tag, cell) : cell);
    return found;
  }

  // The text.

  const articles = [...document.querySelectorAll("article")];
  const spans = articles.map((article) => {
    const box = find(".text", article);
    return tokens.map((text, n) => {
      const span = made("span", text);
      span.dataset.token = n;
      span.setAttribute("role", "button");
      span.tabIndex = n === T - 1 ? 0 : -1;
      box.append(span);
      return span;
    });
  });

  function drawText(eye, own) {
    own.forEach((span, j) => {
      const seen = j <= state.query && eye !== null;
      span.style.backgroundColor = seen ? colour(eye.show, value(eye, eye.show, state.query, j)) : "";
      span.classList.toggle("future", j > state.query);
      span.classList.toggle("query", j === state.query);
      span.setAttribute("aria-pressed", j === state.query);
    });
  }

  function drawKey(eye, box) {
    box.replaceChildren();
    if (eye === null) return;
    box.append(made("span", eye.show === state.show ? MODES[eye.show] : `${MODES[eye.show]}, as this run has no ${state.show}`));
    const steps = eye.show === "weights" ? [0.01, 0.1, 0.5, 1] : [0.3, 1, 3, FULL[eye.show] / 5, FULL[eye.show]];
    for (const x of steps) {
      const item = made("span"), swatch = made("i");
      swatch.style.backgroundColor = colour(eye.show, x);
      item.append(swatch, eye.show === "weights" ? `${x}` : `${x} nats`);
      box.append(item);
    }
  }

  // The panel: who masked the key that is pointed at.

  function voters(eye, i, j) {
    const found = [];
    for (let t = j; t < i; t++) {
      const vote = value(eye, "votes", t, j);
      if (vote !== 0) found.push({ t, vote, damage: eye.layer.damage ? value(eye, "damage", t, j) : vote });
    }
    return found.sort((a, b) => Math.abs(b.vote) - Math.abs(a.vote));
  }

  function drawPanel(eye, box) {
    const i = glance ?? state.query, j = state.key;
    box.replaceChildren();
    if (eye === null) { box.append(made("p", `This run has no layer ${state.layer} here.`)); return; }
    if (j === null) { drawSummary(eye, box, i); return; }
    const title = made("p");
    title.append(made("strong", named(j)), ", read by query ", made("strong", named(i)));
    box.append(title);
    if (j > i) { box.append(made("p", "It comes after the query, which cannot see it.")); return; }
    if (eye.layer.masks) drawMask(eye, box, i, j);
    const weights = Array.from({ length: eye.layer.heads }, (_, h) => `head ${h}: ${number(at(eye.layer.weights, h, i, j))}`);
    box.append(made("p", `Attention weight: ${weights.join(", ")}`));
  }

  function drawMask(eye, box, i, j) {
    const F = value(eye, "masks", i, j), who = voters(eye, i, j);
    const cast = who.reduce((sum, one) => sum + one.vote, 0);
    const felt = F < 0 ? `odds times ${number(Math.exp(-F))}` : `odds divided by ${number(Math.exp(F))}`;
    box.append(made("p", `F ${number(F)} nats: ${F === 0 ? "not masked" : felt}`, "felt"));
    if (eye.layer.shield) {
      const left = number(value(eye, "shield", i, j));
      box.append(made("p", `Votes against it ${number(cast)}, of which ${number(F)} got through; shield left ${left}`, "shielded"));
    }
    if (who.length === 0) {
      const why = i <= j + 1 ? "A vote is felt from the next query on, so nobody can have masked it yet." : "Nobody has voted against it.";
      box.append(made("p", why, "hint"));
    } else {
      const table = made("table", "", "voters");
      table.append(row(eye.layer.damage ? ["masked by", "vote", "got through", ""] : ["masked by", "vote", ""], "th"));
      for (const one of who.slice(0, LISTED)) {
        const numbers = eye.layer.damage ? [number(one.vote), number(one.damage)] : [number(one.vote)];
        table.append(row([made("td", named(one.t), "token"), ...numbers, bar(Math.abs(one.vote / who[0].vote), "votes")]));
      }
      box.append(table);
      const rest = who.slice(LISTED).reduce((sum, one) => sum + one.vote, 0);
      if (who.length > LISTED) box.append(made("p", `and ${who.length - LISTED} more, ${number(rest)} nats together`, "hint"));
    }
    if (eye.layer.protection) {
      const guards = [];
      for (let t = j; t < i; t++) if (value(eye, "protection", t, j) > 0) guards.push([value(eye, "protection", t, j), t]);
      guards.sort((a, b) => b[0] - a[0]);
      const list = guards.slice(0, 4).map(([p, t]) => `${named(t)} ${number(p)}`).join(", ");
      box.append(made("p", guards.length ? `Protected most by ${list}` : "Nobody has protected it.", "guards"));
    }
  }

  function drawSummary(eye, box, i) {
    const title = made("p");
    title.append("Query ", made("strong", named(i)), `, layer ${eye.layer.index}, head ${eye.head}`);
    box.append(title, made("p", "Point at a token to see its numbers.", "hint"));
    if (!eye.layer.masks || i === 0) return;
    const felt = Array.from({ length: i }, (_, j) => [value(eye, "masks", i, j), j]).sort((a, b) => b[0] - a[0]);
    const gone = felt.filter(([F]) => F > 1).length;
    box.append(made("p", `${gone} of its ${i} earlier tokens are masked by more than 1 nat. Most:`));
    const table = made("table");
    for (const [F, j] of felt.slice(0, 5)) table.append(row([made("td", named(j), "token"), number(F), bar(1 - Math.exp(-F), "masks")]));
    box.append(table);
  }

  // Beside the text: next tokens, every head's row, heat maps.

  function drawNext(run, article) {
    const table = find(".next table", article), came = find(".came", article), i = state.query;
    table.replaceChildren(...run.following[i].map(([text, chance]) => {
      const line = row([text.replaceAll("\n", ""), number(chance), bar(chance, "weights")]);
      line.classList.toggle("true", i + 1 < T && text === tokens[i + 1]);
      return line;
    }));
    came.replaceChildren(...(i + 1 < T
      ? ["Came: ", made("b", quoted(tokens[i + 1])), `, probability ${number(run.truth[i])}, ${number(-Math.log(run.truth[i]))} nats`]
      : ["The text ends here."]));
  }

  function drawStrips(eye, box) {
    box.replaceChildren();
    if (eye === null) return;
    for (let h = 0; h < eye.layer.heads; h++) {
      const line = made("div", "", h === eye.head ? "strip chosen" : "strip"), canvas = made("canvas");
      const several = eye.layer.spread.some((mask) => mask > 0);
      line.append(made("b", several ? `head ${h}, mask ${eye.layer.spread[h]}` : `head ${h}`), canvas);
      canvas.dataset.head = h;
      canvas.width = T;
      canvas.height = 1;
      const context = canvas.getContext("2d"), image = context.createImageData(T, 1);
      fill(image, 0, eye.layer.weights, index(h, state.query, 0), state.query + 1, "weights");
      context.putImageData(image, 0, 0);
      box.append(line);
    }
  }

  function drawMap(eye, figure, name, words) {
    figure.hidden = eye === null || !eye.layer[name];
    if (figure.hidden) return;
    paint(find("canvas", figure), eye.layer[name], part(eye, name), name);
    find("figcaption", figure).textContent = `${words}. Queries go down, keys across; click a row to make it the query.`;
  }

  function fill(image, to, matrix, from, count, show) {
    const own = pixelsOf(show), whole = new Uint32Array(image.data.buffer);
    for (let n = 0; n < count; n++) whole[to + n] = own[matrix[from + n]];
  }

  function paint(canvas, matrix, n, show) {
    const context = canvas.getContext("2d");
    let drawn = maps.get(canvas);
    if (drawn === undefined || drawn.matrix !== matrix || drawn.n !== n) {
      canvas.width = canvas.height = T;
      drawn = { matrix, n, image: context.createImageData(T, T) };
      for (let i = 0; i < T; i++) fill(drawn.image, i * T, matrix, index(n, i, 0), i + 1, show);
      maps.set(canvas, drawn);
    }
    context.putImageData(drawn.image, 0, 0);
    // The empty half marks the chosen row and the column that is pointed at.
    context.fillStyle = "rgba(128, 128, 128, 0.6)";
    context.fillRect(state.query + 1, state.query, T, 1);
    if (state.key !== null) context.fillRect(state.key, 0, 1, state.key);
  }

  // All of it.

  function draw() {
    readColours();
    find("#query").textContent = `query ${named(state.query)}`;
    for (const name of ["layer", "head", "show"]) find(`#${name}`).value = state[name];
    articles.forEach((article, r) => {
      const eye = lens(runs[r]);
      drawText(eye, spans[r]);
      drawKey(eye, find(".key", article));
      drawNext(runs[r], article);
      drawStrips(eye, find(".strips", article));
    });
    point();
    note();
  }

  function point() {
    articles.forEach((article, r) => {
      const eye = lens(runs[r]), j = state.key, masked = eye !== null && eye.layer.masks && j !== null;
      const who = new Set(masked && j <= state.query ? voters(eye, state.query, j).map((one) => one.t) : []);
      spans[r].forEach((span, n) => {
        span.classList.toggle("pointed", n === j);
        span.classList.toggle("voter", who.has(n));
      });
      drawPanel(eye, find(".panel", article));
      const mask = eye !== null && eye.layer.spread.some((one) => one > 0) ? ` (mask ${eye.mask})` : "";
      drawMap(eye, find(".of-masks", article), "masks", `F of layer ${state.layer}${mask}`);
      drawMap(eye, find(".of-weights", article), "weights", `Attention of layer ${state.layer}, head ${eye?.head}`);
    });
    clearTimeout(noting);
    noting = setTimeout(note, 100); // browsers refuse an address that changes with every move of the mouse
  }

  function note() {
    const kept = Object.entries(state).filter(([, x]) => x !== null);
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  }

  function choose(i) {
    state.query = Math.max(0, Math.min(T - 1, i));
    glance = null;
    draw();
  }

  function look(j, i = null) {
    if (state.key === j && glance === i) return;
    state.key = j;
    glance = i;
    point();
  }

  function focus(span) {
    for (const other of span.parentElement.children) other.tabIndex = other === span ? 0 : -1;
    span.focus();
  }

  function listen(article, own) {
    const box = find(".text", article);
    const token = (event) => (event.target.dataset.token === undefined ? null : Number(event.target.dataset.token));
    let finger = false, before = null;
    box.addEventListener("pointerover", (event) => { if (event.pointerType === "mouse" && token(event) !== null) look(token(event)); });
    box.addEventListener("focusin", (event) => { if (token(event) !== null) look(token(event)); });
    box.addEventListener("pointerdown", (event) => { finger = event.pointerType !== "mouse"; before = state.key; });
    box.addEventListener("click", (event) => {
      if (token(event) === null) return;
      // The first tap of a finger looks, as it cannot point; the second one chooses.
      if (finger && before !== token(event)) look(token(event));
      else choose(token(event));
    });
    box.addEventListener("keydown", (event) => {
      const n = token(event), to = { ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: T - 1 }[event.key];
      finger = false;
      if (n === null) return;
      if (own[to] !== undefined) focus(own[to]);
      else if (event.key === "Enter" || event.key === " ") choose(n);
      else if (event.key === "Escape") look(null);
      else return;
      event.preventDefault();
    });
    const place = (event) => {
      const area = event.target.getBoundingClientRect(), cut = (x) => Math.max(0, Math.min(T - 1, Math.floor(x * T)));
      return [cut((event.clientY - area.top) / area.height), cut((event.clientX - area.left) / area.width)];
    };
    for (const canvas of article.querySelectorAll("figure canvas")) {
      canvas.addEventListener("pointermove", (event) => look(place(event)[1], place(event)[0]));
      canvas.addEventListener("pointerleave", () => look(state.key));
      canvas.addEventListener("click", (event) => choose(place(event)[0]));
    }
    const strips = find(".strips", article);
    strips.addEventListener("pointermove", (event) => { if (event.target.dataset.head) look(place(event)[1]); });
    strips.addEventListener("click", (event) => { if (event.target.dataset.head) { state.head = Number(event.target.dataset.head); draw(); } });
  }

  // Selectors, and the state that the address carries.

  const every = runs.flatMap((run) => run.layers);
  const choices = {
    layer: [...new Set(every.map((layer) => layer.index))].sort((a, b) => a - b).map((n) => [n, String(n)]),
    head: Array.from({ length: Math.max(...every.map((layer) => layer.heads)) }, (_, h) => [h, headName(h)]),
    show: Object.entries(MODES).filter(([name]) => every.some((layer) => layer[name] !== undefined)),
  };

  function headName(h) {
    const layer = every.find((one) => one.spread.some((mask) => mask > 0) && h < one.heads);
    return layer === undefined ? String(h) : `${h} (mask ${layer.spread[h]})`;
  }

  for (const [name, options] of Object.entries(choices)) {
    const select = find(`#${name}`);
    for (const [chosen, text] of options) select.append(new Option(text, chosen));
    state[name] = options[0][0];
    select.addEventListener("change", () => {
      state[name] = name === "show" ? select.value : Number(select.value);
      draw();
    });
  }
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of ["layer", "head", "show", "query", "key"]) {
    const given = name === "show" ? asked.get(name) : Number.parseInt(asked.get(name), 10);
    const legal = choices[name] ? choices[name].some(([choice]) => choice === given) : given >= 0 && given < T;
    if (legal) state[name] = given;
  }
  articles.forEach((article, r) => listen(article, spans[r]));
  find("#controls").addEventListener("submit", (event) => event.preventDefault());
  find("#back").addEventListener("click", () => choose(state.query - 1));
  find("#on").addEventListener("click", () => choose(state.query + 1));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
