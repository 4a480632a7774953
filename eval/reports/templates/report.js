"use strict";
(() => {
  const PAGE = 30; // examples put on the page at a time
  const LONG = 120; // reference words from which an example is shown as the passages around its errors
  const EDGE = 6; // equal words that a passage keeps at each end
  const JOIN = 16; // equal words between two errors below which they share a passage
  const PASSAGE = 60; // words from which a passage takes in no further error
  const PASSAGES = 20; // passages put on the page at a time
  const UNSEEN = /[\u202a-\u202e\u2066-\u2069\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g;
  const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]/;
  const LETTER = /\p{L}/u;

  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const several = data.runs.length > 1;

  /* Text only ever enters the page as a text node. */
  const visible = (text) =>
    String(text).replace(UNSEEN, (c) => "[U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "]");
  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const child of children) {
      if (child === null || child === undefined || child === "") continue;
      node.append(typeof child === "object" ? child : visible(child));
    }
    return node;
  }
  function direction(text) {
    const first = LETTER.exec(text);
    return first && RIGHT_TO_LEFT.test(first[0]) ? "rtl" : "ltr";
  }
  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1) + "%");
  const wholes = new Intl.NumberFormat("en-US");
  const clock = (s) =>
    s < 60 ? s.toFixed(1) + " s" : s < 3600 ? (s / 60).toFixed(1) + " min" : (s / 3600).toFixed(1) + " h";
  const failed = (result) => result && result.e !== undefined;
  const errors = (result) => (!result ? -1 : failed(result) ? Infinity : result.c[0] + result.c[1] + result.c[2]);
  /* Errors that the run makes more than the one beside it; NaN where they cannot be compared. */
  const change = (example, run, beside) => {
    const one = example.r[run], other = beside === null ? null : example.r[beside];
    return one && other && !failed(one) && !failed(other) ? errors(one) - errors(other) : NaN;
  };

  /* ---- Theme ---- */
  const theme = byId("theme");
  const darkQuery = matchMedia("(prefers-color-scheme: dark)");
  const store = (key, value) => {
    try { return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value); } catch { return null; }
  };
  const isDark = () => (document.documentElement.dataset.theme || (darkQuery.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.title = "Switch to " + theme.textContent.toLowerCase(); };
  const saved = store("wkt-theme");
  if (saved === "dark" || saved === "light") document.documentElement.dataset.theme = saved;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    store("wkt-theme", document.documentElement.dataset.theme);
    nameTheme();
  });
  darkQuery.addEventListener("change", nameTheme);
  nameTheme();
  theme.hidden = false;

  /* ---- Sorting of the table of bundles ---- */
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.order;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return x === y ? 0 : x === "" ? 1 : -1; // unknown values come last
        const order = column === 0 ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y);
        return ascending ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    }));
  }

  /* ---- One example ---- */
  const wordCount = (text) => (text ? text.split(" ").length : 0);
  /* Calls back with each piece of an alignment and where it begins in the reference and in the hypothesis. */
  function walk(result, visit) {
    let inReference = 0, inHypothesis = 0;
    result.o.forEach(([kind, first, second], place) => {
      visit(kind, first, second, place, inReference, inHypothesis);
      if (kind !== "i") inReference += wordCount(first);
      if (kind !== "d") inHypothesis += wordCount(kind === "s" ? second : first);
    });
    return [inReference, inHypothesis];
  }
  /* The pieces of one side that lie in a stretch of reference words: `[tag, words, place]`. */
  function piecesOf(result, side, [from, to]) {
    const pieces = [];
    walk(result, (kind, first, second, place, at) => {
      const end = at + (kind === "i" ? 0 : wordCount(first));
      if (kind === "i") {
        if (side === 1 && at >= from && at < to) pieces.push(["ins", first, place]);
      } else if (end > from && at < to) {
        if (kind === "=") pieces.push(["", first.split(" ").slice(Math.max(0, from - at), to - at).join(" "), place]);
        else if (kind === "s") pieces.push(["mark", side === 0 ? first : second, place]);
        else pieces.push([side === 0 ? "del" : "gone", first, place]);
      }
    });
    return pieces;
  }
  function wordsOf(result, side, run, range) {
    const text = make("p", "words");
    const pieces = piecesOf(result, side, range);
    text.dir = direction(pieces.map((piece) => piece[1]).join(" "));
    if (!pieces.length) text.append(make("span", "none", side === 0 ? "no words in the reference" : "nothing was heard"));
    pieces.forEach(([tag, words, place], at) => {
      if (at) text.append(" ");
      if (!tag) return text.append(make("bdi", "", words));
      if (tag === "gone") return text.append(gone(words));
      const node = make(tag, "", words);
      node.dataset.place = run + ":" + place;
      node.dir = direction(words);
      if (tag === "mark") node.title = visible(result.o[place][1] + " → " + result.o[place][2]);
      text.append(node);
    });
    return text;
  }
  /* Where the hypothesis lacks words: a mark with their number. */
  function gone(words) {
    const node = make("span", "gone", "−" + wordCount(words));
    node.title = visible("missing: " + words);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", node.title);
    return node;
  }
  /* Stretches of reference words around the errors of all results, in order. */
  function passagesOf(results, length) {
    const spans = [];
    for (const result of results)
      walk(result, (kind, first, second, place, at) => { if (kind !== "=") spans.push([at, at + (kind === "i" ? 0 : wordCount(first))]); });
    spans.sort((a, b) => a[0] - b[0]);
    const joined = [];
    for (const [from, to] of spans) {
      const last = joined.at(-1);
      if (last && (from <= last[1] || (from - last[1] < JOIN && to - last[0] < PASSAGE))) last[1] = Math.max(last[1], to);
      else joined.push([from, to]);
    }
    let end = 0;
    return joined.map(([from, to], n) => {
      const start = Math.max(end, from - EDGE);
      end = Math.min(joined[n + 1]?.[0] ?? length, to + EDGE);
      return [start, end >= length ? Infinity : end];
    });
  }
  /* Roughly when a reference word is said: where its counterpart stands among the words of the timed phrases. */
  function timeOf(result, word) {
    if (!result.g) return null;
    let at = 0;
    const [, total] = walk(result, (kind, first, second, place, inReference, inHypothesis) => {
      if (inReference <= word) at = inHypothesis + (kind === "=" ? word - inReference : 0);
    });
    const spoken = (at / Math.max(1, total)) * result.g.at(-1)[1];
    return (result.g.find(([, words]) => words > spoken) ?? result.g.at(-1))[0];
  }
  const hands = (s) => {
    const parts = [Math.floor(s / 3600), Math.floor(s / 60) % 60, Math.floor(s % 60)].map((n) => String(n).padStart(2, "0"));
    return (parts[0] === "00" ? parts.slice(1) : parts).join(":");
  };
  function markerOf(run) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "marker s" + (run % 8));
    svg.setAttribute("viewBox", "-8 -8 16 16");
    svg.setAttribute("aria-hidden", "true");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    use.setAttribute("href", "#m" + (run % 8));
    svg.append(use);
    return svg;
  }
  /* The sides of a stretch: `[name, run whose marker it has, result, side]` each; names head the first stretch only. */
  function stretch(columns, range, named) {
    return make("div", "sides", ...columns.map(([name, marked, content]) => {
      const box = make("div", "side", make("div", named ? "side-name" : "side-name later", marked === null ? null : markerOf(marked), name));
      box.append(content(range));
      return box;
    }));
  }
  function heard(result, run) {
    if (!result) return () => make("p", "words", make("span", "none", "not in this run"));
    if (failed(result)) return () => make("p", "failed", "Failed: " + result.e);
    return (range) => wordsOf(result, 1, run, range);
  }
  /* A long example: the passages around its errors, some at a time, each with its time where that is known. */
  function passages(columns, results, timed, length) {
    const ranges = passagesOf(results, length);
    const box = make("div", "passages", make("p", "note", wholes.format(length) + " words, shown are the passages with errors: " + wholes.format(ranges.length)));
    const put = (from) => {
      ranges.slice(from, from + PASSAGES).forEach((range, offset) => {
        const time = timed ? timeOf(timed, range[0]) : null;
        const head = make("div", "passage-head", make("span", "", "from word " + wholes.format(range[0] + 1)));
        if (time !== null) {
          const button = make("button", "link", "▶ about " + hands(time));
          button.type = "button";
          button.dataset.seek = time;
          head.append(button);
        }
        box.append(make("div", "passage", head, stretch(columns, range, from + offset === 0)));
      });
      const left = ranges.length - from - PASSAGES;
      if (left > 0) {
        const rest = make("button", "small", "Show " + wholes.format(Math.min(PASSAGES, left)) + " more of " + wholes.format(ranges.length) + " passages");
        rest.type = "button";
        rest.addEventListener("click", () => { rest.remove(); put(from + PASSAGES); });
        box.append(rest);
      }
    };
    put(0);
    return box;
  }
  function counts(result) {
    const names = ["sub", "del", "ins"];
    return result.c.map((n, i) => [n, names[i]]).filter(([n]) => n).map(([n, name]) => n + " " + name).join(" · ");
  }
  function difference(more) {
    if (Number.isNaN(more) || more === 0) return null;
    return make("span", more > 0 ? "worse" : "better", (more > 0 ? "▲ " + more + " more" : "▼ " + -more + " fewer") + (Math.abs(more) > 1 ? " errors" : " error"));
  }
  const sounds = new Map();
  function soundAddress(audio) {
    if (audio.k === undefined) return audio.u;
    if (!sounds.has(audio.k)) {
      const node = document.querySelector('script[data-sound="' + CSS.escape(audio.k) + '"]');
      const bytes = Uint8Array.from(atob(node.textContent), (c) => c.charCodeAt(0));
      sounds.set(audio.k, URL.createObjectURL(new Blob([bytes], { type: node.dataset.type })));
    }
    return sounds.get(audio.k);
  }
  function player(example) {
    const audio = example.a;
    if (audio.k === undefined && audio.u === undefined)
      return make("span", "", audio.name === null ? "No audio file" : "The audio file is missing: " + audio.name);
    const node = make("audio");
    node.controls = true;
    node.preload = "none";
    node.setAttribute("aria-label", visible("Audio of " + example.id));
    node.src = soundAddress(audio);
    node.addEventListener("play", () => document.querySelectorAll("audio").forEach((other) => other !== node && other.pause()));
    node.addEventListener("error", () => node.replaceWith(make("span", "", "The browser cannot play " + (audio.name || "this audio"))));
    return node;
  }
  function written(example, state) {
    const box = make("div", "written");
    const line = (name, text) => {
      const value = make("span", "", text || "–");
      value.dir = direction(text || "");
      box.append(make("p", "", make("b", "", name), value));
    };
    line("Reference as written", example.t);
    for (const run of state.beside === null ? [state.run] : [state.beside, state.run]) {
      const result = example.r[run];
      if (result && !failed(result)) line((several ? data.runs[run] : "Hypothesis") + " as written", result.t);
    }
    return box;
  }
  function render(example, state) {
    const result = example.r[state.run];
    const beside = state.beside === null ? null : example.r[state.beside];
    const title = make("h3", "", example.id);
    const header = make("header", "", title);
    if (result && !failed(result)) header.append(make("span", "rate", "WER " + percent(result.w)), make("span", "", counts(result) || "no errors"));
    const more = difference(change(example, state.run, state.beside));
    if (more) header.append(more);
    const meta = [example.p ? "speaker " + example.p : "", example.l, example.d === null ? "" : clock(example.d)];
    header.append(make("span", "meta", meta.filter(Boolean).join(" · ")));

    const usable = [result, beside].filter((one) => one && !failed(one));
    const by = usable.length ? (usable[0] === result ? state.run : state.beside) : null;
    const plain = () => { const text = make("p", "words", make("bdi", "", example.t)); text.dir = direction(example.t); return text; };
    const columns = [["Reference", null, by === null ? plain : (range) => wordsOf(example.r[by], 0, by, range)]];
    if (state.beside !== null) columns.push([data.runs[state.beside], state.beside, heard(beside, state.beside)]);
    columns.push([several ? data.runs[state.run] : "Hypothesis", several ? state.run : null, heard(result, state.run)]);
    const isLong = by !== null && example.w > LONG && usable.some((one) => errors(one) > 0);
    const sides = isLong ? passages(columns, usable, usable[0], example.w) : stretch(columns, [0, Infinity], true);

    const toggle = make("button", "small", "As written");
    toggle.type = "button";
    toggle.setAttribute("aria-expanded", "false");
    const item = make("li", "example", header, sides, make("footer", "", player(example), toggle));
    toggle.addEventListener("click", () => {
      const open = item.querySelector(".written");
      if (open) open.remove(); else item.append(written(example, state));
      toggle.setAttribute("aria-expanded", String(!open));
    });
    item.tabIndex = -1;
    item.dataset.id = example.id;
    return item;
  }

  /* ---- The list, its filters and its order ---- */
  const controls = Object.fromEntries(["search", "run", "beside", "show", "speaker", "order"].map((name) => [name, byId(name)]));
  const list = byId("list"), found = byId("found"), more = byId("more");
  for (const speaker of data.speakers) {
    const option = make("option", "", speaker);
    option.value = speaker;
    controls.speaker.append(option);
  }
  byId("speaker-tool").hidden = data.speakers.length < 2;
  document.querySelector(".tools").hidden = false;

  const haystacks = new Map();
  function haystack(example) {
    if (!haystacks.has(example)) {
      const texts = [example.id, example.t, example.p, ...example.r.map((r) => (r ? r.t || r.e || "" : ""))];
      haystacks.set(example, texts.join("\n").toLocaleLowerCase());
    }
    return haystacks.get(example);
  }
  function stateOfControls() {
    const run = controls.run ? Number(controls.run.value) : 0;
    const chosen = controls.beside && controls.beside.value !== "" ? Number(controls.beside.value) : null;
    return {
      run, beside: chosen === run ? null : chosen, show: controls.show.value, speaker: controls.speaker.value,
      order: controls.order.value, terms: controls.search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean),
    };
  }
  const SHOWN = {
    all: () => true,
    errors: (example, state) => errors(example.r[state.run]) > 0 || (state.beside !== null && errors(example.r[state.beside]) > 0),
    right: (example, state) => errors(example.r[state.run]) === 0,
    regressed: (example, state) => change(example, state.run, state.beside) > 0,
    improved: (example, state) => change(example, state.run, state.beside) < 0,
    failed: (example) => example.r.some(failed),
  };
  const VALUE = {
    errors: (example, state) => errors(example.r[state.run]),
    wer: (example, state) => (failed(example.r[state.run]) ? Infinity : example.r[state.run]?.w ?? -1),
    change: (example, state) => { const n = change(example, state.run, state.beside); return Number.isNaN(n) ? -Infinity : n; },
    duration: (example) => example.d ?? -1,
    dataset: (example) => -example.n,
  };
  let chosen = [], shown = 0, current = null;
  function append() {
    const state = stateOfControls();
    const next = chosen.slice(shown, shown + PAGE);
    list.append(...next.map((example) => render(example, state)));
    shown += next.length;
    more.hidden = shown >= chosen.length;
    more.textContent = "Show " + wholes.format(Math.min(PAGE, chosen.length - shown)) + " more of " + wholes.format(chosen.length);
  }
  function update() {
    const state = stateOfControls();
    const fits = (example) =>
      SHOWN[state.show](example, state) && (!state.speaker || example.p === state.speaker) &&
      state.terms.every((term) => haystack(example).includes(term));
    const values = new Map(data.examples.map((example) => [example, VALUE[state.order](example, state)]));
    chosen = data.examples.filter(fits);
    chosen.sort((a, b) => (values.get(a) === values.get(b) ? a.n - b.n : values.get(b) > values.get(a) ? 1 : -1));
    shown = 0;
    current = null;
    list.replaceChildren();
    append();
    if (!chosen.length) list.append(make("li", "nothing", "No example fits. Take back a filter, or search for something else."));
    found.textContent = wholes.format(chosen.length) + " of " + wholes.format(data.examples.length) + (data.examples.length === 1 ? " example" : " examples");
    remember();
  }

  /* The filters stand in the address, so that a view can be linked. */
  function remember() {
    const kept = new URLSearchParams();
    for (const [name, control] of Object.entries(controls)) if (control && control.value !== control.dataset.normal) kept.set(name, control.value);
    try { history.replaceState(null, "", kept.size ? "#examples?" + kept : location.hash.startsWith("#examples?") ? "#examples" : location.hash || " "); } catch { /* not allowed everywhere */ }
  }
  function restore() {
    const kept = new URLSearchParams(location.hash.split("?")[1] || "");
    for (const [name, control] of Object.entries(controls)) {
      if (!control) continue;
      control.dataset.normal ??= control.value;
      control.value = kept.get(name) ?? control.dataset.normal;
      if (control.selectedIndex === -1) control.value = control.dataset.normal;
    }
  }
  let waiting = 0;
  controls.search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 120); });
  for (const control of Object.values(controls)) if (control) control.addEventListener("change", update);
  more.addEventListener("click", append);

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-seek]");
    const audio = button?.closest(".example").querySelector("audio");
    if (!audio) return;
    audio.currentTime = Number(button.dataset.seek);
    audio.play().catch(() => {});
  });
  function goTo(values) {
    for (const [name, control] of Object.entries(controls)) if (control) control.value = values[name] ?? control.dataset.normal;
    update();
    byId("examples").scrollIntoView();
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-speaker], button[data-change]");
    if (!button) return;
    if (button.dataset.speaker !== undefined) goTo({ speaker: button.dataset.speaker, show: "all" });
    else goTo({ show: button.dataset.change, run: button.dataset.run, beside: "0", order: button.dataset.change === "regressed" ? "change" : "errors" });
  });

  /* A substituted word shows its counterpart. */
  function pair(event, on) {
    const word = event.target.closest?.("mark[data-place]");
    const item = word?.closest(".example");
    if (item) for (const node of item.querySelectorAll('mark[data-place="' + word.dataset.place + '"]')) node.classList.toggle("pair", on);
  }
  list.addEventListener("mouseover", (event) => pair(event, true));
  list.addEventListener("mouseout", (event) => pair(event, false));

  /* ---- Keyboard ---- */
  function step(by) {
    const items = list.querySelectorAll(".example");
    const at = current === null ? -1 : [...items].indexOf(current);
    if (by > 0 && at + 1 >= items.length && !more.hidden) append();
    const target = list.querySelectorAll(".example")[Math.max(0, at + by)];
    if (target) { target.focus({ preventScroll: true }); target.scrollIntoView({ block: "nearest" }); }
  }
  list.addEventListener("focusin", (event) => { current = event.target.closest(".example"); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) {
      if (event.key === "Escape" && event.target === controls.search) { controls.search.value = ""; update(); }
      return;
    }
    if (event.key === "/") { event.preventDefault(); controls.search.focus(); byId("examples").scrollIntoView(); }
    else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
    else if (event.key === "p" && current) {
      const audio = current.querySelector("audio");
      if (audio) audio.paused ? audio.play().catch(() => {}) : audio.pause();
    }
  });

  restore();
  update();
  if (location.hash.startsWith("#examples?")) byId("examples").scrollIntoView();
})();
