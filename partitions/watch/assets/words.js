// What events are called in the picture, and what they mean in a sentence.

function seconds(ticks) {
  return `${(ticks / 1e7).toFixed(6)} s`;
}

function lasting(ticks) {
  const micro = ticks / 10;
  if (micro < 1000) return `${micro.toFixed(1)} µs`;
  if (micro < 1e6) return `${(micro / 1000).toFixed(2)} ms`;
  return `${(micro / 1e6).toFixed(3)} s`;
}

function many(count, one, more = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
}

function hex(value) {
  return typeof value === "number" ? `0x${value.toString(16)}` : String(value);
}

function shorter(text, length) {
  return text.length <= length ? text : `${text.slice(0, Math.max(1, length - 1))}…`;
}

const HEX_FIELDS = new Set(["address", "connection", "control", "gpa", "msr", "port", "value", "vector", "transaction_id", "transaction"]);

function fieldWords(name, value) {
  if (typeof value === "number" && HEX_FIELDS.has(name)) return hex(value);
  return String(value);
}

const CHIPS = {
  "": "device", storage: "storage", network: "network", heartbeat: "heartbeat", shutdown: "shutdown",
  "time sync": "time sync", kvp: "KVP", vss: "VSS",
  "hv-socket": "socket",
};

function deviceWords(device) {
  return (Object.hasOwn(CHIPS, device) && CHIPS[device]) || device.replaceAll("_", " ");
}

// What a channel ends at: a socket's ends are streams, and no devices.
function endWords(device, end) {
  return device === CHIPS["hv-socket"] ? device : `${device} ${end}`;
}

// A few letters that travel with the dot.
function tag(row) {
  const fields = row.fields || {};
  switch (row.layer) {
    case "hypercall":
      return row.answers ? fields.status || "returns" : fields.call || row.event;
    case "msr":
      return row.words || hex(fields.msr);
    case "synic":
      if (row.event === "signal_event") return `event flag ${fields.flag}`;
      return row.event === "post_message" ? "message" : row.event.replaceAll("_", " ");
    case "interrupt":
      return `interrupt ${hex(fields.vector)}`;
    case "port":
      return `${row.event === "port_in" ? "IN" : "OUT"} ${hex(fields.port)}`;
    case "control":
      return row.words.split(" ", 1)[0] || row.event;
    case "packet":
      return row.words.split(" ").slice(0, 2).join(" ") || row.event;
    case "device":
      return deviceTag(row);
    default:
      return row.words || row.event.replaceAll("_", " ");
  }
}

// Of frames, what the first one is about: their number and the others are in the sentence.
function deviceTag(row) {
  const words = row.words || row.event.replaceAll("_", " ");
  const frame = row.event === "network_frames" ? words.replace(/^\d+ frames?: /, "").split("; ", 1)[0] : words;
  return shorter(frame, 40);
}

// What channel messages are for. `it` is the VM.
const MESSAGES = {
  initiate_contact: (it) => `${it} asks for the bus, in a version of it`,
  version_response: (it) => `The root tells ${it} whether it grants that version`,
  request_offers: (it) => `${it} asks which devices there are`,
  offer_channel: (it, row) => `The root offers ${it} a device${row.device ? `, ${deviceWords(row.device)},` : ""} as channel ${row.channel}`,
  all_offers_delivered: (it) => `The root has offered ${it} all that there is`,
  gpadl_header: (it) => `${it} gives pages of its memory to the root, for the rings of a channel`,
  gpadl_body: (it) => `${it} gives more of the pages`,
  gpadl_created: (it) => `The root has taken the pages of ${it}`,
  open_channel: (it, row) => `${it} opens channel ${row.channel}: its two rings are in the pages that it gave`,
  open_channel_result: (it, row) => `The root has opened channel ${row.channel} of ${it}: requests can pass`,
  close_channel: (it, row) => `${it} closes channel ${row.channel}`,
  gpadl_teardown: (it) => `${it} wants its pages back`,
  gpadl_torndown: (it) => `The root looks at the pages of ${it} no more`,
  rescind_channel_offer: (it, row) => `The root takes the device of channel ${row.channel} away from ${it}`,
  rel_id_released: (it, row) => `${it} lets go of channel ${row.channel}`,
  unload: (it) => `${it} leaves the bus`,
  unload_complete: (it) => `The root lets ${it} go`,
};

// The event in a sentence, for somebody who hears of it for the first time.
function caption(row) {
  const fields = row.fields || {};
  const vm = row.about || row.vm || "the host";
  const toRoot = row.direction === ">root";
  const channel = row.via == null ? "" : ` on channel ${row.via}`;
  switch (row.layer) {
    case "hypercall": {
      const caller = row.vm === "root" || fields.caller === 1 ? "the root" : vm;
      if (row.answers) return `${fields.call} returns ${fields.status} to ${caller}.`;
      return `${caller} calls the hypervisor: ${row.words}`;
    }
    case "msr":
      return `${vm} ${row.event.startsWith("read") ? "reads" : "writes"} the synthetic register ${row.words || hex(fields.msr)}: ${hex(fields.value)}`;
    case "synic":
      if (row.event === "signal_event") {
        const [from, to] = toRoot ? [vm, "the root"] : ["The root", vm];
        const wrote = toRoot && row.request && !row.request.by_host ? `${vm} has put ${row.request.words} into the ring${channel}, and signals: ` : "";
        return `${wrote}${wrote ? "" : `${from} signals ${to}${channel}: `}the hypervisor sets event flag ${fields.flag} in ${toRoot ? "the root's" : `${vm}'s`} SIEF page.`;
      }
      if (row.event === "post_message") return `${toRoot ? vm : "The root"} posts a message of ${row.size} bytes; the hypervisor puts it into the slot of SINT ${fields.sint} of ${toRoot ? "the root" : vm}.`;
      return `${vm}: ${row.event.replaceAll("_", " ")} ${row.words}`;
    case "interrupt":
      return `The hypervisor interrupts ${toRoot ? "the root" : vm}: vector ${hex(fields.vector)} on virtual processor ${fields.vp}.`;
    case "port":
      return `${vm} is stopped at ${row.event === "port_in" ? "reading" : "writing"} port ${hex(fields.port)}, and its worker in the root answers${fields.value === undefined ? "" : `: ${hex(fields.value)}${letter(fields)}`}.`;
    case "control":
      return `${Object.hasOwn(MESSAGES, row.event) ? MESSAGES[row.event](vm, row) : `Channel message ${toRoot ? `from ${vm} to the root` : `from the root to ${vm}`}`}: ${row.words.replace(/ (interface|instance)=\S+/g, "") || row.event}`;
    case "packet": {
      const meant = row.request && row.request.words !== row.words ? `, ${row.request.words}` : "";
      return toRoot
        ? `The root takes a packet of ${vm} out of the ring${channel}: ${row.words}${meant}`
        : `The root puts a packet for ${vm} into the ring${channel}: ${row.words}${meant}`;
    }
    case "device":
      if (toRoot) return `The VSP of ${vm}${channel} reads the request: ${row.words}`;
      return /_(result|ended)$/.test(row.event)
        ? `The VSP of ${vm}${channel} has its result: ${row.words}`
        : `The VSP of ${vm}${channel} has for its guest: ${row.words}`;
    case "scheduler":
      return `The scheduler, ${vm}: ${row.words}.`;
    case "state":
      return stateCaption(row, vm, row.words.replace(" -> ", " to "));
    default:
      return `${row.event} ${row.words}`;
  }
}

function stateCaption(row, vm, words) {
  switch (row.event) {
    case "vm_state": return `The VMMS: ${vm} goes from ${words}.`;
    case "vm_ended": return `${vm} has ended: ${words}`;
    case "guest_crash": return `${vm} has crashed: ${words}`;
    case "partition_state": return `The hypervisor: the partition of ${vm} is ${words}.`;
    case "vmbus_connection": return `The bus of ${vm} goes from ${words}.`;
    case "vmbus_channel": return `Channel ${row.channel} of ${vm} goes from ${words}.`;
    default: return `${vm}: ${row.event.replaceAll("_", " ")}${words ? `, ${words}` : ""}`;
  }
}

function letter(fields) {
  const { port, value } = fields;
  return port === 0x3f8 && value > 32 && value < 127 ? ` ("${String.fromCharCode(value)}" on the serial port)` : "";
}

const PLACES = { guest: "guest", hypervisor: "hypervisor", root: "root" };

function hopWords(row) {
  switch (row.layer) {
    case "hypercall": return row.answers ? "hypercall returns" : (row.fields && row.fields.call) || "hypercall";
    case "synic": return row.event === "signal_event" ? "event flag" : "message";
    case "interrupt": return row.direction === ">root" ? "root interrupt" : "guest interrupt";
    case "packet": return row.direction === ">root" ? "root takes packet" : "root sends packet";
    case "device": return /_(result|ended)$/.test(row.event) ? `result: ${row.words}` : deviceTag(row);
    default: return row.event.replaceAll("_", " ");
  }
}
