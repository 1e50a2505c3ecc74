// The list of events: only the lines that can be seen are in the document, however many there are.

let LINE = 26; // pixels, by the size of the letters

class EventList {
  constructor(holder, space, onChoose) {
    this.holder = holder;
    this.space = space;
    this.onChoose = onChoose;
    this.rows = [];
    this.chosen = -1;
    holder.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.resize()).observe(holder);
    space.addEventListener("click", (event) => {
      const line = event.target.closest("[data-place]");
      if (line) onChoose(Number(line.dataset.place));
    });
  }

  resize() {
    LINE = Math.round(parseFloat(getComputedStyle(document.documentElement).fontSize) * 1.65);
    this.set(this.rows);
  }

  set(rows) {
    this.rows = rows;
    this.space.style.height = `${rows.length * LINE}px`;
    this.draw();
  }

  choose(place) {
    this.chosen = place;
    const top = place * LINE;
    const { scrollTop, clientHeight } = this.holder;
    if (top < scrollTop || top + LINE > scrollTop + clientHeight) this.holder.scrollTop = Math.max(0, top - clientHeight / 2);
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.holder.scrollTop / LINE) - 4);
    const last = Math.min(this.rows.length, Math.ceil((this.holder.scrollTop + this.holder.clientHeight) / LINE) + 4);
    const lines = [];
    for (let place = first; place < last; place += 1) lines.push(this.line(this.rows[place], place));
    this.space.replaceChildren(...lines);
    const shown = this.chosen >= first && this.chosen < last;
    if (shown) this.holder.setAttribute("aria-activedescendant", `event-${this.rows[this.chosen].seq}`);
    else this.holder.removeAttribute("aria-activedescendant");
  }

  line(row, place) {
    const way = row.direction === ">root" ? "←" : row.direction === ">child" ? "→" : "·";
    const words = row.layer === "synic" || row.layer === "interrupt" || row.layer === "port" ? tag(row)
      : row.event === "network_frames" ? row.words.replace(/^1 frame: /, "") : row.words || row.event.replaceAll("_", " ");
    const serious = row.level >= 30 ? (row.level >= 40 ? " error" : " warning") : "";
    const node = element("div", {
      role: "option", id: `event-${row.seq}`, class: `line layer-${row.layer}${serious}`, "data-place": place,
      "aria-selected": String(place === this.chosen), "aria-posinset": place + 1, "aria-setsize": this.rows.length,
      title: `${row.layer} ${row.event} ${row.words}`,
    }, element("span", { class: "when" }, (row.time / 1e7).toFixed(6)), element("bdi", { class: "who" }, row.about), element("span", { class: "way" }, way),
    element("bdi", { class: "what" }, words));
    node.style.top = `${place * LINE}px`;
    node.style.height = `${LINE}px`;
    return node;
  }
}
