"use strict";
// What the page knows: events in order, requests made of them, and what the picture looked like at each.

const KEEP = 20000; // events of a live host; the oldest go first
const LAYERS = ["state", "control", "packet", "device", "hypercall", "synic", "interrupt", "msr", "port", "scheduler"];
const QUIET_LAYERS = new Set(["port"]); // one event for each letter that a guest prints
const EVENT_CONNECTION = 0x2000; // where a guest signals channel 1: 0x2001
const RESTING = new Set(["off", "saved", "waiting", "crashed"]);

class Scene {
  constructor() {
    this.vms = new Map(); // name -> {state, channels: Map of ID -> {device, state}}
  }

  apply(change) {
    const [kind, name] = change;
    if (kind === "reset") {
      this.vms.clear();
      return;
    }
    const vm = this.vms.get(name) || { state: "off", channels: new Map() };
    this.vms.set(name, vm);
    if (kind === "vm") {
      vm.state = change[2];
      if (RESTING.has(vm.state)) vm.channels.clear();
    } else if (change[4] === "gone") {
      vm.channels.delete(change[2]);
    } else {
      vm.channels.set(change[2], { device: change[3], state: change[4] });
    }
  }
}

class Recording {
  constructor() {
    this.clear();
  }

  clear() {
    this.rows = [];
    this.bySeq = new Map();
    this.requests = [];
    this.roster = new Map(); // every VM that was ever seen -> Map of channel ID -> device: so that nothing jumps about
    this.before = []; // changes that make the picture as it was before the first row
    this.scene = new Scene();
    this.at = -1;
    this.forgotten = 0;
    this.dropped = 0;
    this.shapes = [];
    this.trees = {};
  }

  // What the host knew before the first row.
  start(changes) {
    this.before = changes;
    for (const change of changes) this.enlist(change);
    this.rewind();
  }

  enlist(change) {
    const [kind, name] = change;
    if (kind === "reset") return;
    if (!this.roster.has(name)) this.roster.set(name, new Map());
    if (kind === "channel") {
      const known = this.roster.get(name);
      if (change[3] || !known.has(change[2])) known.set(change[2], change[3]);
    }
  }

  add(columns, lists) {
    for (const list of lists) {
      const row = { vm: "", words: "", direction: "", channel: null, size: null, fields: null, data: null, more: null, changes: null };
      list.forEach((value, place) => { row[columns[place]] = value; });
      if (this.bySeq.has(row.seq)) continue;
      if (row.direction == null) row.direction = "";
      if (row.words == null) row.words = "";
      this.attribute(row);
      if (row.changes) for (const change of row.changes) this.enlist(change);
      if (row.channel !== null && this.roster.has(row.vm)) row.device = this.roster.get(row.vm).get(row.channel) || "";
      row.index = this.rows.length;
      this.rows.push(row);
      this.bySeq.set(row.seq, row);
    }
  }

  // The root's interrupts and hypercalls are about nobody in particular; what came right before says for whom they are.
  attribute(row) {
    row.about = row.vm;
    row.via = row.channel;
    const last = this.rows[this.rows.length - 1];
    if (row.layer === "synic") {
      if (row.event === "signal_event" && row.fields) {
        const number = row.direction === ">root" ? row.fields.connection - EVENT_CONNECTION : row.fields.flag;
        const known = this.roster.get(row.vm);
        if (known && known.has(number)) row.via = number;
      }
    } else if (row.layer === "interrupt" && last && last.layer === "synic" && last.direction === row.direction) {
      row.about = last.about;
      row.via = last.via;
    } else if (row.layer === "hypercall" && row.fields) {
      const sent = row.fields.call === "HvSignalEvent" || row.fields.call === "HvPostMessage";
      for (let back = 1; sent && back <= 3; back += 1) {
        const earlier = this.rows[this.rows.length - back];
        if (!earlier) break;
        if (earlier.layer === "synic") {
          row.about = earlier.about;
          row.via = earlier.via;
          row.answers = earlier.direction;
          break;
        }
      }
    }
  }

  addRequests(requests) {
    for (const request of requests) {
      request.hops = request.hops.filter((hop) => this.bySeq.has(hop[0]));
      if (!request.hops.length) continue;
      request.first = request.hops[0][0];
      request.last = request.hops[request.hops.length - 1][0];
      [request.taken, request.sent] = [request.crossings[0], request.crossings[1] ?? request.last];
      this.requests.push(request);
      request.hops.forEach((hop, place) => {
        const row = this.bySeq.get(hop[0]);
        // One signal or interrupt serves many requests: it belongs to the first of them.
        if (!row.request) {
          row.request = request;
          row.hop = place;
          if (!row.about || row.about === "root") row.about = request.vm;
          if (row.via == null) row.via = request.channel;
        }
      });
    }
    this.requests.sort((a, b) => a.first - b.first || a.last - b.last);
  }

  trim() {
    const extra = this.rows.length - KEEP;
    if (extra < KEEP / 10) return 0;
    for (let index = 0; index < extra; index += 1) {
      const row = this.rows[index];
      if (row.changes) this.before.push(...row.changes);
      this.bySeq.delete(row.seq);
    }
    const summary = new Scene();
    for (const change of this.before) summary.apply(change);
    this.before = [];
    for (const [name, vm] of summary.vms) {
      this.before.push(["vm", name, vm.state]);
      for (const [id, channel] of vm.channels) this.before.push(["channel", name, id, channel.device, channel.state]);
    }
    this.rows.splice(0, extra);
    this.rows.forEach((row, index) => { row.index = index; });
    const oldest = this.rows.length ? this.rows[0].seq : 0;
    this.requests = this.requests.filter((request) => request.last >= oldest);
    for (const request of this.requests) request.hops = request.hops.filter((hop) => hop[0] >= oldest);
    this.forgotten += extra;
    this.rewind();
    return extra;
  }

  rewind() {
    this.scene = new Scene();
    this.at = -1;
    for (const change of this.before) this.scene.apply(change);
  }

  // The picture as it is right after the row of this index.
  sceneAt(index) {
    if (index < this.at) this.rewind();
    for (let next = this.at + 1; next <= index; next += 1) {
      const { changes } = this.rows[next];
      if (changes) for (const change of changes) this.scene.apply(change);
    }
    this.at = index;
    return this.scene;
  }

  // Which requests wait in each ring, and are in work, right after an event: "VM/channel" -> lists.
  load(seq) {
    const found = new Map();
    for (const request of this.requests) {
      if (request.first > seq) break;
      if (request.last <= seq) continue;
      const key = `${request.vm}/${request.channel}`;
      const lists = found.get(key) || { asked: [], working: [], answered: [] };
      found.set(key, lists);
      if (request.by_host) { // the root asks: from when it is sent it lies in the child's ring, or is in work there
        if (seq >= request.taken) lists.answered.push(request);
      } else if (seq < request.taken) lists.asked.push(request);
      else if (seq < request.sent) lists.working.push(request);
      else lists.answered.push(request);
    }
    return found;
  }
}

class Filter {
  constructor() {
    this.vm = "";
    this.channel = null;
    this.text = "";
    this.layers = new Set(LAYERS.filter((layer) => !QUIET_LAYERS.has(layer)));
  }

  passes(row) {
    if (!this.layers.has(row.layer)) return false;
    if (this.vm && row.about !== this.vm && row.vm !== this.vm) return false;
    if (this.channel !== null && row.via !== this.channel) return false;
    if (!this.text) return true;
    const wanted = this.text.toLowerCase();
    return row.words.toLowerCase().includes(wanted) || row.event.includes(wanted) || row.about.toLowerCase().includes(wanted);
  }
}
