// The picture that lectures draw, as SVG in real pixels, and the dot that moves through it.

const DOTS = 4; // packets drawn one by one
const STATE_WORDS = { shutting_down: "shutting down", turning_off: "turning off" };

const measuring = document.createElement("canvas").getContext("2d");

// How wide words are in the picture, in pixels.
function widthOf(words, kind) {
  const size = kind.includes("small") ? 14 : kind.includes("room-title") ? 17 : 15.5;
  measuring.font = `${kind.includes("strong") || kind.includes("title") ? 700 : 400} ${size}px ${getComputedStyle(document.body).fontFamily}`;
  return measuring.measureText(words).width;
}

function fitting(words, room, kind) {
  if (widthOf(words, kind) <= room) return words;
  let [least, most] = [1, words.length - 1];
  while (least < most) {
    const middle = Math.ceil((least + most) / 2);
    if (widthOf(shorter(words, middle), kind) <= room) least = middle;
    else most = middle - 1;
  }
  return shorter(words, least);
}

class Picture {
  constructor(holder, actions) {
    this.holder = holder;
    this.actions = actions; // onVm, onChannel, onEvent, onPacket: what a person has pressed
    this.svg = drawn("svg", { role: "group", "aria-label": "The host" });
    this.still = drawn("g");
    this.trails = drawn("g", { "aria-hidden": "true" });
    this.moving = drawn("g");
    this.svg.append(this.markers(), this.still, this.trails, this.moving);
    holder.replaceChildren(this.svg);
    this.frame = 0;
    this.drawnFor = "";
  }

  markers() {
    const arrow = (id, size) => drawn("marker", { id, class: id, viewBox: "0 0 10 10", refX: 8, refY: 5, markerUnits: "userSpaceOnUse", markerWidth: size, markerHeight: size, orient: "auto-start-reverse" }, drawn("path", { d: "M0 0L10 5L0 10z" }));
    return drawn("defs", {}, arrow("arrow", 12), arrow("arrow-way", 17));
  }

  // Everything that does not move. `vms` are pairs of name and channels, `note` is what is not shown.
  draw(vms, scene, load, note, chosen) {
    const scale = pictureScale(this.holder);
    const width = Math.max(760, this.holder.clientWidth / scale);
    const height = Math.max(360, this.holder.clientHeight / scale);
    const states = vms.map(([name]) => {
      const vm = scene.vms.get(name);
      return vm ? [vm.state, [...vm.channels]] : null;
    });
    const waiting = [...load].map(([name, lists]) => [name, Object.values(lists).map((list) => [list.length, ...list.slice(0, DOTS).map((request) => request.first)])]);
    const key = JSON.stringify([width, height, vms, states, waiting, note, [...chosen]]);
    if (key === this.drawnFor) return;
    this.drawnFor = key;
    this.layout = layOut(width, height, vms, chosen);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", this.summary(vms, scene));
    const { layout } = this;
    const parts = [
      drawn("line", { class: "trunk", x1: layout.trunk, x2: layout.trunk, y1: layout.top, y2: layout.boxes[2].y + 12 }),
      ...this.hypervisor(layout), ...this.root(layout),
      this.text(layout.child.x + 2, layout.top - 12, "child partitions", "room-title"),
    ];
    for (const [name] of vms) parts.push(this.vm(layout.rows.get(name), scene.vms.get(name), load));
    if (note) parts.push(this.text(layout.child.x + layout.child.w, layout.top - 12, note, "note end"));
    this.still.replaceChildren(...parts);
  }

  summary(vms, scene) {
    const states = vms.map(([name]) => `${name} ${(scene.vms.get(name) || { state: "off" }).state}`);
    return `Root partition, hypervisor and ${many(vms.length, "child partition")}: ${states.join(", ")}`;
  }

  box(box, kind, radius = 6) {
    return drawn("rect", { class: kind, x: box.x, y: box.y, width: box.w, height: box.h, rx: radius });
  }

  text(x, y, words, kind = "", room = 0) {
    const fits = room ? fitting(words, room, kind) : words;
    const node = drawn("text", { x, y, class: kind }, fits);
    if (fits !== words) node.append(drawn("title", {}, words));
    return node;
  }

  upright(box, words, kind) {
    const [x, y] = centre(box);
    return drawn("text", { class: kind, transform: `translate(${x + 5} ${y}) rotate(-90)` }, words);
  }

  hypervisor({ hypervisor, boxes, size }) {
    const names = ["SynIC of the root", "hypercalls · ports and connections", "registers, SynIC of the children"];
    return [
      this.box(hypervisor, "hypervisor", 8),
      this.text(boxes[1].x - 5, hypervisor.y + size.box - 7, "hypervisor", "room-title middle"),
      ...boxes.flatMap((box, place) => [this.box(box, "part"), this.text(box.x + box.w / 2, box.y + box.h - 8, names[place], "small middle", box.w)]),
    ];
  }

  root({ root, winhv, vmms, boxes }) {
    const x = winhv.rail;
    return [
      this.box(root, "partition root", 10),
      this.text(root.x + 12, root.y + 22, "root partition", "room-title"),
      drawn("line", { class: "trunk", x1: x, x2: x, y1: winhv.y + winhv.h, y2: boxes[0].y }),
      this.box(winhv, "part"), this.upright({ ...winhv, w: 40 }, "VID · WinHv · VMBus", "small middle"),
      this.box(vmms, "part"), this.text(vmms.x + 10, vmms.y + vmms.h / 2 + 5, "VMMS", "label"),
      this.text(vmms.x + vmms.w - 10, vmms.y + vmms.h / 2 + 5, vmms.w > 280 ? "starts and stops the VMs" : "starts, stops VMs", "small end", vmms.w - 66),
    ];
  }

  vm(row, vm, load) {
    const state = vm ? vm.state : "off";
    const group = drawn("g", { class: `vm state-${state}`, "data-vm": row.name, "data-state": state });
    const { worker, box, synic, program, title } = row;
    const words = STATE_WORDS[state] || state;
    const awake = vm && !RESTING.has(state);
    if (awake) {
      group.append(this.box(worker, "part worker"));
      if (title) group.append(this.text(worker.x + 10, worker.y + 18, `worker of ${row.name}`, "label", worker.w - 20));
      else group.append(this.text(worker.x + 48, worker.y + worker.h / 2 + 5, row.name, "small", row.nameRoom));
    }
    const room = pressable(drawn("g", { class: "room" }), `VM ${row.name}, ${words}: show this one alone`, () => this.actions.onVm(row.name));
    room.append(this.box(box, "partition child", 10));
    const nameY = title ? box.y + 18 : box.y + box.h / 2 + 5;
    const small = awake && !title; // the name stands where the guest's box would be, its state is a dot in front
    const badge = 18 + widthOf(words, "small");
    const nameX = small ? program.x + 22 : box.x + 12;
    room.append(this.text(nameX, nameY, row.name, "label strong", small ? program.w - 22 : box.w - badge - 30));
    if (small) {
      room.append(drawn("circle", { class: "badge", cx: program.x + 10, cy: nameY - 5, r: 6 }, drawn("title", {}, words)));
    } else {
      room.append(drawn("rect", { class: "badge", x: box.x + box.w - badge - 10, y: nameY - 15, width: badge, height: 20, rx: 10 }),
        this.text(box.x + box.w - badge / 2 - 10, nameY, words, "badge-words middle"));
    }
    group.append(room);
    if (!awake) return group;
    if (title) group.append(this.box(program, "part"), this.text(program.x + program.w / 2, program.y + program.h / 2 + 5, program.w > 110 ? "guest software" : "guest", "small middle", program.w));
    group.append(this.box(synic, "part"), synic.h > 110 ? this.upright({ ...synic, w: 40 }, "virtual processor", "small middle") : this.text(synic.x + 22, synic.y + synic.h / 2 + 5, "VP", "small middle"));
    const [cpuX, cpuY] = [synic.x + synic.w, synic.y + synic.h / 2];
    group.append(drawn("line", { class: "trunk", x1: cpuX, x2: this.layout.trunk, y1: cpuY, y2: cpuY }));
    for (const [id, lane] of row.lanes) {
      const channel = vm.channels.get(id);
      const last = row.hidden > 0 && lane === [...row.lanes.values()].at(-1);
      if (channel) group.append(this.channel(row.name, lane, channel, load.get(`${row.name}/${id}`), last ? row.hidden : 0));
    }
    return group;
  }

  channel(vm, lane, channel, load, hidden) {
    const device = deviceWords(channel.device || lane.device);
    const group = pressable(drawn("g", { class: `channel channel-${channel.state}`, "data-channel": `${vm}/${lane.id}`, "data-state": channel.state }),
      `Channel ${lane.id} of ${vm}, ${device}, ${channel.state}: show this one alone`, () => this.actions.onChannel(vm, lane.id));
    const [left, right] = [lane.vsp.x + lane.vsp.w, lane.vsc.x];
    const apart = lane.tight ? 4 : 6;
    if (channel.state !== "offered") {
      group.append(
        drawn("rect", { class: "hit", x: left, y: lane.y - 10, width: right - left, height: 20 }),
        drawn("line", { class: "ring", x1: right, x2: left + 3, y1: lane.y - apart, y2: lane.y - apart, "marker-end": "url(#arrow)" }),
        drawn("line", { class: "ring", x1: left, x2: right - 3, y1: lane.y + apart, y2: lane.y + apart, "marker-end": "url(#arrow)" }),
      );
      const middle = (lane.from + lane.to) / 2;
      const words = `channel ${lane.id}${channel.state === "open" ? "" : ` ${channel.state}`}${hidden ? ` · ${hidden} more` : ""}`;
      const half = widthOf(words, "small") / 2 + 5;
      group.append(drawn("rect", { class: "behind", x: middle - half, y: lane.y - 9, width: 2 * half, height: 18, rx: 4 }),
        this.text(middle, lane.y + 5, words, "small middle"));
      if (load) group.append(...this.waiting(lane, load, apart));
      group.append(this.box(lane.vsp, "end"), this.text(centre(lane.vsp)[0], lane.y + 5, endWords(device, "VSP"), "small middle", lane.vsp.w - 6));
    }
    group.append(this.box(lane.vsc, "end"), this.text(centre(lane.vsc)[0], lane.y + 5, channel.state === "offered" ? device : endWords(device, "VSC"), "small middle", lane.vsc.w - 6));
    if (channel.state !== "offered" && (channel.device || lane.device) === "storage") group.append(...this.disk(lane));
    return group;
  }

  disk({ store, vsp, tight }) {
    const { x, y } = store;
    const [w, h] = [15, Math.min(10, vsp.h / 2.4)];
    return [
      tight ? null : drawn("line", { class: "wire", x1: x + w, x2: vsp.x, y1: y, y2: y }),
      drawn("path", { class: "disk", d: `M${x - w} ${y - h + 3}v${2 * h - 6}a${w} 4 0 0 0 ${2 * w} 0v${6 - 2 * h}` }),
      drawn("ellipse", { class: "disk", cx: x, cy: y - h + 3, rx: w, ry: 4 }),
    ].filter(Boolean);
  }

  // Packets that lie in a ring, and what is in work: dots that lead to their packet, and a number where there are many.
  waiting(lane, load, apart) {
    const dots = (requests, crossing, x, y, step) => {
      const parts = requests.slice(0, DOTS).map((request, place) => {
        const dot = drawn("circle", { class: "packet-waiting", cx: x + step * place * 11, cy: y, r: 4.5 }, drawn("title", {}, `${request.name} ${request.words}`));
        dot.addEventListener("click", (event) => {
          event.stopPropagation();
          this.actions.onPacket(request.crossings.at(request.by_host ? 0 : crossing) ?? request.first);
        });
        return dot;
      });
      if (requests.length > DOTS) parts.push(this.text(x + step * 46, y + 4, String(requests.length), `small count ${step > 0 ? "" : "end"}`));
      return parts;
    };
    return [
      ...dots(load.asked, 0, lane.to - 12, lane.y - apart, -1),
      ...dots(load.working, 0, lane.vsp.x - 10, lane.y - apart, -1),
      ...dots(load.answered, -1, lane.from + 12, lane.y + apart, 1),
    ];
  }

  // --- what moves

  // Show an event: the way that it goes and a dot with its name, moving for `duration` milliseconds, 0 for at once.
  show(row, duration, extra = []) {
    cancelAnimationFrame(this.frame);
    this.moving.replaceChildren();
    this.trails.replaceChildren(...extra.map((other) => this.line(wayOf(other, this.layout), `trail layer-${other.layer}`)).filter(Boolean));
    this.mark(row);
    if (!row) return;
    const legs = [];
    const begins = row.layer === "synic" && row.direction === ">root" && row.request && !row.request.by_host;
    if (begins) legs.push({ points: writeOf(row, this.layout), words: "ring write", kind: "packet" });
    legs.push({ points: wayOf(row, this.layout), words: tag(row), kind: row.layer });
    const walked = legs.filter((leg) => leg.points.length);
    if (!walked.length) return;
    const lines = walked.map((leg) => this.line(leg.points, `way layer-${leg.kind}`));
    const token = this.token(row, walked[walked.length - 1]);
    this.moving.append(...lines.filter(Boolean), token.group);
    const finish = () => {
      token.place(...walked[walked.length - 1].points.at(-1));
    };
    if (!duration) {
      token.say(walked[walked.length - 1].words);
      finish();
      return;
    }
    this.travel(walked, lines, token, duration, finish);
  }

  travel(legs, lines, token, duration, finish) {
    const lengths = lines.map((line) => (line ? line.getTotalLength() : 0));
    const total = lengths.reduce((sum, length) => sum + length, 0);
    const started = performance.now();
    const move = (now) => {
      let walked = Math.min(1, Math.max(0, (now - started) / duration)) * total;
      const done = walked >= total;
      let leg = 0;
      while (leg < legs.length - 1 && walked > lengths[leg]) {
        walked -= lengths[leg];
        leg += 1;
      }
      token.say(legs[leg].words, legs[leg].kind);
      if (lines[leg]) {
        const point = lines[leg].getPointAtLength(Math.min(walked, lengths[leg]));
        token.place(point.x, point.y);
      }
      if (done) finish();
      else this.frame = requestAnimationFrame(move);
    };
    move(started);
  }

  line(points, kind) {
    if (points.length < 2) return null;
    const way = kind.startsWith("way");
    const shown = way ? shortened(points, 11) : points; // so that the dot does not hide the arrow's point
    return drawn("path", { class: kind, d: `M${shown.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`, "marker-end": way ? "url(#arrow-way)" : null });
  }

  token(row, leg) {
    const label = drawn("text", { class: "tag middle" });
    const back = drawn("rect", { class: "tag-back", height: 24, rx: 6 });
    const dot = drawn("circle", { class: "dot", r: 9 });
    const group = pressable(drawn("g", { class: `token layer-${leg.kind}` }, dot, back, label), "", () => this.actions.onEvent(row));
    let half = 0;
    const { layout } = this;
    return {
      group,
      say(words, kind = leg.kind) {
        const fits = shorter(words, 34);
        if (label.textContent !== fits) {
          label.textContent = fits;
          half = Math.max(18, label.getComputedTextLength() / 2 + 9);
          back.setAttribute("x", -half);
          back.setAttribute("width", 2 * half);
          group.setAttribute("class", `token layer-${kind}`);
          group.setAttribute("aria-label", `${words}: show its bytes`);
        }
      },
      place(x, y) {
        const shift = Math.max(half + 4 - x, Math.min(0, layout.width - half - 4 - x));
        const above = y > 44 ? -38 : 16;
        group.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
        back.setAttribute("transform", `translate(${shift.toFixed(1)} ${above})`);
        label.setAttribute("transform", `translate(${shift.toFixed(1)} ${above + 17})`);
      },
    };
  }

  // Something that stands still but is meant: the VM and the channel of the event.
  mark(row) {
    for (const node of this.still.querySelectorAll(".meant")) node.classList.remove("meant");
    if (!row) return;
    for (const node of this.still.querySelectorAll(".vm")) if (node.dataset.vm === row.about) node.classList.add("meant");
    for (const node of this.still.querySelectorAll(".channel")) if (node.dataset.channel === `${row.about}/${row.via}`) node.classList.add("meant");
  }
}
