// One event in full: what it says, the fields that its bytes are made of, and the bytes.

const BYTES_A_LINE = 16;

class Detail {
  constructor(holder, recording, decode) {
    this.holder = holder;
    this.recording = recording;
    this.decode = decode; // asks the live host for the fields of bytes; null for a file, which has them
    this.row = null;
  }

  show(row) {
    if (row === this.row) return;
    this.row = row;
    if (!row) {
      this.holder.replaceChildren();
      return;
    }
    const facts = [["time", seconds(row.time)], ["about", row.about || row.vm || "the host"], ["layer", row.layer], ["event", row.event]];
    if (row.direction) facts.push(["direction", row.direction === ">root" ? "to the root" : "to the child"]);
    if (row.channel !== null) facts.push(["channel", row.channel]);
    if (row.size !== null) facts.push(["size", many(row.size, "byte")]);
    for (const [name, value] of Object.entries(row.fields || {})) facts.push([name.replaceAll("_", " "), fieldWords(name, value)]);
    const bytes = row.data ? decodeBase64(row.data) : null;
    this.cells = [];
    this.holder.replaceChildren(
      element("h2", { class: `layer-${row.layer}` }, element("bdi", {}, row.words || row.event.replaceAll("_", " "))),
      element("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, element("bdi", {}, String(value)))])),
      ...(bytes ? this.contents(row, bytes) : []),
    );
    this.holder.scrollTop = 0;
  }

  contents(row, bytes) {
    const fields = element("div", { class: "fields" });
    const tree = this.recording.trees[row.seq];
    if (tree) this.grow(fields, treeOf(this.recording.shapes, tree));
    else if (this.decode) this.ask(row, fields);
    else fields.append(element("p", { class: "note" }, "This event's fields are not in the page, its bytes are."));
    const { more } = row;
    return [
      element("h3", {}, "Fields"), fields, element("h3", {}, "Bytes"), this.dump(bytes),
      more ? element("p", { class: "note" }, `and ${many(more, "byte")} more`) : null,
    ].filter(Boolean);
  }

  async ask(row, holder) {
    holder.append(element("p", { class: "note" }, "asking the host…"));
    const found = await this.decode(row);
    if (this.row !== row) return;
    holder.replaceChildren();
    if (found) this.grow(holder, treeOf(found.shapes, found.tree));
    else holder.append(element("p", { class: "note" }, "The host does not answer; here are the bytes."));
  }

  grow(holder, root) {
    holder.replaceChildren(element("ul", {}, ...this.branch(root, true)));
  }

  // A field with parts is one that opens; one without is a button that shows its bytes.
  branch(field, open) {
    const name = element("span", { class: "name" }, field.name);
    const value = element("bdi", { class: "value" }, field.words || (field.value === null ? "" : String(field.value)));
    const place = element("span", { class: "place" }, `+${field.offset}`);
    const touch = { onpointerenter: () => this.light(field), onpointerleave: () => this.light(null), onfocus: () => this.light(field), onblur: () => this.light(null) };
    if (!field.parts.length) return [element("li", {}, element("button", { type: "button", class: "field", ...touch }, name, value, place))];
    return [element("li", {}, element("details", { open }, element("summary", { class: "field", ...touch }, name, value, place),
      element("ul", {}, ...field.parts.flatMap((part) => this.branch(part, open && field.parts.length <= 24)))))];
  }

  dump(bytes) {
    this.cells = new Array(bytes.length);
    const lines = [];
    for (let start = 0; start < bytes.length; start += BYTES_A_LINE) {
      const codes = element("span", { class: "codes" });
      const letters = element("span", { class: "letters" });
      for (let at = start; at < start + BYTES_A_LINE; at += 1) {
        if (at >= bytes.length) {
          codes.append("   ");
          continue;
        }
        const code = element("span", {}, bytes[at].toString(16).padStart(2, "0"));
        const sign = element("span", {}, bytes[at] > 31 && bytes[at] < 127 ? String.fromCharCode(bytes[at]) : "·");
        this.cells[at] = [code, sign];
        codes.append(code, at % 8 === 7 ? "  " : " ");
        letters.append(sign);
      }
      lines.push(element("div", {}, element("span", { class: "place" }, start.toString(16).padStart(4, "0")), "  ", codes, " ", letters));
    }
    return element("pre", { class: "dump", "aria-label": `${many(bytes.length, "byte")}` }, ...lines);
  }

  light(field) {
    for (const node of this.holder.querySelectorAll(".lit")) node.classList.remove("lit");
    if (!field || !field.size) return;
    for (let at = field.offset; at < field.offset + field.size; at += 1) {
      const pair = this.cells[at];
      if (pair) for (const cell of pair) cell.classList.add("lit");
    }
  }
}

// Trees are stored as a shape, which many share, and what is in it: see partitions/watch/trees.py.
function treeOf(shapes, [number, values]) {
  let next = 0;
  const build = ([name, offset, size, parts]) => {
    const [value = null, words = ""] = values[next] || [];
    next += 1;
    return { name, offset, size, value, words, parts: parts.map(build) };
  };
  return build(shapes[number]);
}

function decodeBase64(text) {
  return Uint8Array.from(atob(text), (letterOf) => letterOf.charCodeAt(0));
}
