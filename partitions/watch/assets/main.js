// Joins the parts: what the buttons and keys do, and where the events come from.

const recording = new Recording();
const filter = new Filter();
let visible = []; // rows that pass the filter, in order
let following = false;
const chosen = new Map(); // the channel of each VM that was looked at last
let columns = [];
let notes = [];
let connection = "";

const source = byId("recording");
const live = source.dataset.live;
const player = new Player(moved, playing);
player.timeOf = (place) => (visible[place] ? visible[place].time : 0);
const list = new EventList(byId("list"), byId("list-space"), (place) => manual(() => player.go(place, false)));
const detail = new Detail(byId("detail"), recording, live ? askHost : null);
const picture = new Picture(byId("picture"), {
  onVm: (name) => choose(byId("filter-vm"), filter.vm === name ? "" : name),
  onChannel: (vm, id) => {
    if (filter.vm !== vm) choose(byId("filter-vm"), vm);
    choose(byId("filter-channel"), filter.channel === id ? "" : String(id));
  },
  onPacket: (seq) => manual(() => goToSeq(seq)),
  onEvent: (row) => {
    detail.show(row);
    byId("detail").focus();
  },
});

function current() {
  return visible[player.place] || null;
}

// Anything that a person does by hand ends the following of a live host.
function manual(action) {
  player.pause();
  follow(false);
  action();
}

// --- moving

function moved(place, duration, passed) {
  const row = place < 0 ? null : visible[place];
  redraw(row);
  // What was passed without being shown leaves its ways behind for a moment.
  const extra = passed > 1 && player.playing ? visible.slice(Math.max(0, place - Math.min(passed, 8)), place) : trail(row);
  picture.show(row, duration, extra);
  byId("caption").textContent = row ? caption(row) : recording.rows.length ? "Nothing passes the filter." : "Nothing has happened yet.";
  byId("caption").className = row ? `layer-${row.layer}` : "";
  byId("caption").setAttribute("aria-live", player.playing || following ? "off" : "polite");
  list.choose(place);
  detail.show(row);
  showRequest(row);
  showPlace();
  Object.assign(document.body.dataset, { place: String(place), seq: row ? String(row.seq) : "", events: String(visible.length) });
}

// How far along we are.
function showPlace() {
  const row = current();
  const place = Math.max(0, player.place);
  const slider = byId("position");
  slider.value = String(place);
  const words = row ? `${seconds(row.time)}, event ${(place + 1).toLocaleString("en")} of ${visible.length.toLocaleString("en")}` : "no events";
  slider.setAttribute("aria-valuetext", words);
  byId("time").textContent = words;
  drawMarks();
}

function trail(row) {
  if (!row || !row.request) return [];
  return row.request.hops.slice(0, row.hop).map((hop) => recording.bySeq.get(hop[0])).filter(Boolean);
}

function redraw(row) {
  const scene = recording.sceneAt(row ? row.index : -1);
  let vms = [...recording.roster].map(([name, channels]) => [name, [...channels].sort((a, b) => a[0] - b[0])]);
  const all = vms.length;
  if (filter.vm) vms = vms.filter(([name]) => name === filter.vm);
  if (filter.vm && filter.channel !== null) vms = vms.map(([name, channels]) => [name, channels.filter(([id]) => id === filter.channel)]);
  const page = vmsOnAPage(byId("picture").clientHeight / pictureScale(byId("picture")));
  if (row && row.via !== null) chosen.set(row.about, row.via);
  let note = "";
  if (vms.length > page) {
    const place = Math.max(0, vms.findIndex(([name]) => row && name === row.about));
    const start = Math.floor(place / page) * page;
    note = `${start + 1} to ${Math.min(vms.length, start + page)} of ${vms.length}`;
    vms = vms.slice(start, start + page);
  } else if (vms.length < all) {
    note = `1 of ${all}`;
  }
  picture.draw(vms, scene, row ? recording.load(row.seq) : new Map(), note, chosen);
}

function showRequest(row) {
  const holder = byId("request");
  if (!row || !row.request) {
    holder.replaceChildren();
    holder.dataset.name = "";
    return;
  }
  const { request } = row;
  if (holder.dataset.name !== `${request.name} ${request.first}`) {
    holder.dataset.name = `${request.name} ${request.first}`;
    let before = null;
    const hops = request.hops.map(([seq, place], number) => {
      const other = recording.bySeq.get(seq);
      const since = before === null ? "" : `+${lasting(other.time - before)}`;
      before = other.time;
      return element("li", {}, element("button", { type: "button", class: `hop layer-${other.layer}`, "data-hop": number, title: PLACES[place] || place, onclick: () => manual(() => goToSeq(seq)) },
        element("bdi", {}, shorter(hopWords(other), 26)), element("small", {}, since)));
    });
    holder.replaceChildren(
      element("p", {}, element("b", {}, element("bdi", {}, request.name)), " ", element("bdi", {}, request.words), ` · ${request.outcome} · ${lasting(request.ended - request.started)}`),
      element("ol", {}, ...hops),
    );
  }
  for (const button of holder.querySelectorAll(".hop")) {
    const now = Number(button.dataset.hop) === row.hop;
    button.setAttribute("aria-current", now ? "step" : "false");
    if (now) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function goToSeq(seq) {
  const row = recording.bySeq.get(seq);
  if (!row) return;
  let place = visible.indexOf(row);
  if (place < 0) {
    filter.layers.add(row.layer);
    byId(`layer-${row.layer}`).checked = true;
    refilter();
    place = visible.indexOf(row);
  }
  if (place >= 0) player.go(place);
}

function jump(wanted, way) {
  for (let place = player.place + way; place >= 0 && place < visible.length; place += way) {
    if (wanted(visible[place])) {
      player.go(place);
      return;
    }
  }
  say(way > 0 ? "There is none after this." : "There is none before this.");
}

const JUMPS = {
  request: (row) => row.request && row.hop === 0,
  message: (row) => row.layer === "control",
  state: (row) => row.layer === "state",
  hop: (row) => row.request && row.request === (current() || {}).request,
};

function say(words) {
  byId("caption").textContent = words;
}

// --- filters

function refilter() {
  const row = current();
  visible = recording.rows.filter((other) => filter.passes(other));
  settle();
  let place = row ? visible.findIndex((other) => other.index >= row.index) : 0;
  if (place < 0) place = visible.length - 1;
  player.go(place, false);
}

function settle() {
  player.length = visible.length;
  byId("position").max = String(Math.max(0, visible.length - 1));
  list.set(visible);
  marks = null;
}

function choose(select, value) {
  select.value = value;
  select.dispatchEvent(new Event("change"));
}

// A list that is open stays as it is unless there is something new to choose.
function offer(select, options, value) {
  const key = JSON.stringify(options);
  if (select.dataset.offered !== key) {
    select.dataset.offered = key;
    select.replaceChildren(element("option", { value: "" }, "all"), ...options.map(([one, words]) => element("option", { value: one }, words)));
  }
  if (select.value !== value) select.value = value;
}

function fillFilters() {
  offer(byId("filter-vm"), [...recording.roster.keys(), "root"].map((name) => [name, name]), filter.vm);
  const channels = new Map();
  for (const [name, known] of recording.roster) {
    if (filter.vm && filter.vm !== name) continue;
    for (const [id, device] of known) channels.set(id, filter.vm || recording.roster.size === 1 ? device : "");
  }
  if (filter.channel !== null && !channels.has(filter.channel)) filter.channel = null;
  const options = [...channels].sort((one, other) => one[0] - other[0]).map(([id, device]) => [id, device ? `${id} ${deviceWords(device)}` : String(id)]);
  offer(byId("filter-channel"), options, filter.channel === null ? "" : String(filter.channel));
}

// --- marks under the slider: where something happens

let marks = null;

function drawMarks() {
  const canvas = byId("marks");
  const width = canvas.clientWidth;
  if (!width || (marks && marks.width === width && marks.place === player.place)) return;
  const style = getComputedStyle(document.documentElement);
  if (!marks || marks.width !== width) {
    const image = document.createElement("canvas");
    image.width = width;
    image.height = 12;
    const paint = image.getContext("2d");
    const colour = (row) => (row.level >= 40 ? "--error" : row.level >= 30 ? "--warning" : row.layer === "state" ? "--state" : row.layer === "control" ? "--control" : row.layer === "packet" ? "--packet" : null);
    const height = (row) => (row.level >= 30 ? 12 : row.layer === "state" ? 9 : row.layer === "control" ? 7 : 4);
    const best = new Array(width).fill(null);
    visible.forEach((row, place) => {
      const x = Math.min(width - 1, Math.floor((place / Math.max(1, visible.length - 1)) * (width - 1)));
      if (colour(row) && (!best[x] || height(row) > height(best[x]))) best[x] = row;
    });
    best.forEach((row, x) => {
      if (!row) return;
      paint.fillStyle = style.getPropertyValue(colour(row));
      paint.fillRect(x, 12 - height(row), 1, height(row));
    });
    marks = { image, width };
  }
  canvas.width = width;
  const paint = canvas.getContext("2d");
  paint.drawImage(marks.image, 0, 0);
  marks.place = player.place;
}

// --- the buttons and the keys

function playing() {
  const button = byId("play");
  button.querySelector("path").setAttribute("d", player.playing ? "M5 3h3.5v14H5zM11.5 3H15v14h-3.5z" : "M5 3v14l12-7z");
  button.setAttribute("aria-label", player.playing ? "Pause" : "Play");
  document.body.dataset.playing = String(player.playing);
}

function follow(on) {
  following = Boolean(live) && on;
  byId("live").setAttribute("aria-pressed", String(following));
  if (following) {
    player.pause();
    player.go(visible.length - 1, false);
  }
}

function changeSpeed(by) {
  const select = byId("speed");
  select.selectedIndex = Math.max(0, Math.min(select.options.length - 1, select.selectedIndex + by));
  select.dispatchEvent(new Event("change"));
}

const ACTIONS = {
  first: () => manual(() => player.go(0)),
  back: () => manual(() => player.go(player.place - 1)),
  play: () => { if (player.playing) player.pause(); else { follow(false); player.play(); } },
  step: () => manual(() => player.go(player.place + 1)),
  last: () => manual(() => player.go(visible.length - 1)),
  "next-request": (event) => manual(() => jump(JUMPS.request, event.shiftKey ? -1 : 1)),
  "next-message": (event) => manual(() => jump(JUMPS.message, event.shiftKey ? -1 : 1)),
  "next-state": (event) => manual(() => jump(JUMPS.state, event.shiftKey ? -1 : 1)),
  live: () => follow(!following),
  "help-button": () => {
    const help = byId("help");
    help.hidden = !help.hidden;
    byId("help-button").setAttribute("aria-expanded", String(!help.hidden));
  },
};

const KEYS = {
  " ": "play", ArrowRight: "step", ArrowLeft: "back", ArrowDown: "step", ArrowUp: "back", Home: "first", End: "last",
  r: "next-request", m: "next-message", s: "next-state", l: "live", "?": "help-button",
};

function listen() {
  for (const [id, action] of Object.entries(ACTIONS)) byId(id).addEventListener("click", action);
  byId("position").addEventListener("input", (event) => manual(() => player.go(Number(event.target.value), false)));
  const speed = byId("speed");
  speed.replaceChildren(...SPEEDS.map(([words], place) => element("option", { value: place }, words)));
  speed.value = String(START_SPEED);
  speed.addEventListener("change", () => {
    [, player.speed] = SPEEDS[speed.selectedIndex];
    player.now = player.timeOf(player.place);
  });
  byId("filter-vm").addEventListener("change", (event) => {
    filter.vm = event.target.value;
    fillFilters();
    refilter();
  });
  byId("filter-channel").addEventListener("change", (event) => {
    filter.channel = event.target.value === "" ? null : Number(event.target.value);
    refilter();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filter-text").addEventListener("input", (event) => {
    filter.text = event.target.value;
    refilter();
  });
  byId("filter-layers").replaceChildren(...LAYERS.map((layer) => element("label", { class: `layer-${layer}` },
    element("input", {
      type: "checkbox", id: `layer-${layer}`, checked: filter.layers.has(layer),
      onchange: (event) => { if (event.target.checked) filter.layers.add(layer); else filter.layers.delete(layer); refilter(); },
    }), " ", layer)));
  document.addEventListener("keydown", keyed);
  document.addEventListener("click", (event) => { if (!byId("layers").contains(event.target)) byId("layers").open = false; });
  new ResizeObserver(() => {
    marks = null;
    picture.drawnFor = "";
    if (columns.length) moved(player.place, 0, 0);
  }).observe(byId("picture"));
}

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target } = event;
  const typing = target.matches("input[type=search], select");
  if (event.key === "Escape") {
    byId("layers").open = false;
    byId("help").hidden = true;
    target.blur();
    return;
  }
  if (typing) return;
  if (event.key === " " && target.closest("button, summary, [role=button], input[type=checkbox]")) return; // a press of what has the focus
  if (target.matches("#position") && event.key.startsWith("Arrow")) return;
  const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (letter === "/") byId("filter-text").focus();
  else if (letter === "+" || letter === "=") changeSpeed(1);
  else if (letter === "-") changeSpeed(-1);
  else if (letter === "h") manual(() => jump(JUMPS.hop, event.shiftKey ? -1 : 1));
  else if (KEYS[letter]) ACTIONS[KEYS[letter]](event);
  else return;
  event.preventDefault();
}

// --- where the events come from

function status() {
  const parts = [];
  if (live) parts.push(connection);
  parts.push(many(recording.rows.length, "event"));
  if (recording.requests.length) parts.push(many(recording.requests.length, "request"));
  if (recording.dropped) parts.push(`${recording.dropped.toLocaleString("en")} dropped`);
  if (recording.forgotten) parts.push(`${recording.forgotten.toLocaleString("en")} older forgotten`);
  byId("status").textContent = [...parts, ...notes].join(" · ");
  byId("status").title = byId("status").textContent;
  document.body.dataset.dropped = String(recording.dropped);
}

async function unpack(text) {
  const packed = new Blob([decodeBase64(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(packed).text());
}

async function openFile() {
  if (typeof DecompressionStream === "undefined") {
    byId("status").textContent = "This page needs a browser of 2023 or later.";
    return;
  }
  const whole = await unpack(source.textContent);
  columns = whole.columns;
  notes = whole.notes;
  recording.dropped = whole.dropped;
  recording.shapes = whole.shapes;
  recording.trees = whole.trees;
  recording.start(whole.before);
  recording.add(columns, whole.rows);
  recording.addRequests(whole.requests);
  source.remove();
  fillFilters();
  refilter();
  ready("file");
}

function ready(mode) {
  status();
  document.body.dataset.mode = mode;
}

listen();
playing();
if (live) openLive();
else openFile().catch((error) => { byId("status").textContent = `The recording in this page cannot be read: ${error.message}`; });
