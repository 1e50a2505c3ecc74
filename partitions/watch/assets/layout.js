// Where everything stands: the root on the left, children on the right, channels between them, the hypervisor below.
// Pure: a size and a roster in, rectangles and points out.

const ROOMY_ROW = 58; // pixels of a VM with its name above its parts
const LEAST_ROW = 30; // with its name among them
const LANE = 24;

// A large window has larger letters, not more room between them.
function pictureScale(holder) {
  return Math.min(2.2, Math.max(1, Math.min(holder.clientWidth / 880, holder.clientHeight / 440)));
}

function measures(height, count) {
  const roomy = (height - 228) / Math.max(1, count) >= ROOMY_ROW;
  return roomy
    ? { roomy, title: 34, vmms: 34, gap: 10, foot: 86, box: 28, air: 26 }
    : { roomy, title: 29, vmms: 26, gap: 6, foot: 64, box: 24, air: 14 };
}

function vmsOnAPage(height) {
  const { title, vmms, gap, foot, air } = measures(height, Infinity);
  return Math.max(1, Math.floor((height - title - vmms - gap - foot - air - 26) / LEAST_ROW));
}

function layOut(width, height, vms, chosen) {
  const pad = 10;
  const size = measures(height, vms.length);
  const hypervisor = { x: pad, y: height - pad - size.foot, w: width - 2 * pad, h: size.foot };
  const floor = hypervisor.y - size.air;
  const rootWidth = Math.min(480, Math.max(300, width * 0.37));
  const childWidth = Math.min(440, Math.max(280, width * 0.34));
  const trunk = width - pad - 6;
  const root = { x: pad, y: 8, w: rootWidth, h: floor - 8 };
  const winhv = { x: root.x + 10, y: root.y + size.title, w: 62, h: root.h - size.title - 10, rail: root.x + 54 };
  const vmms = { x: winhv.x + winhv.w + 10, y: root.y + size.title, w: root.w - winhv.w - 30, h: size.vmms };
  const top = vmms.y + vmms.h + size.gap;
  const child = { x: trunk - 18 - childWidth, w: childWidth };
  const rowHeight = Math.min(230, (floor - 8 - top) / Math.max(1, vms.length));
  const third = (hypervisor.w - 40) / 3;
  const boxes = ["left", "middle", "right"].map((name, place) => ({
    name, x: hypervisor.x + 10 + place * (third + 10), y: hypervisor.y + size.box, w: third, h: hypervisor.h - size.box - 8,
  }));
  const rows = new Map();
  vms.forEach(([name, channels], place) => {
    const y = top + place * rowHeight;
    const h = rowHeight - (size.roomy ? 8 : 4);
    rows.set(name, layOutVm(name, channels, chosen.get(name), { y, h }, { root, child, vmms }));
  });
  return { size, width, height, pad, hypervisor, boxes, root, winhv, vmms, child, trunk, rows, top, floor };
}

// Where not all channels have room: first those with traffic, and always the one that is looked at.
function channelsThatFit(channels, fitting, chosen) {
  if (channels.length <= fitting) return channels;
  const busy = ([, device]) => (device === "storage" || device === "network" ? 0 : 1);
  const order = [...channels].sort((a, b) => (a[0] === chosen ? -1 : b[0] === chosen ? 1 : busy(a) - busy(b) || a[0] - b[0]));
  return order.slice(0, fitting).sort((a, b) => a[0] - b[0]);
}

function layOutVm(name, channels, chosen, { y, h }, { root, child, vmms }) {
  const title = h >= 48 ? 24 : 0;
  const worker = { x: vmms.x, y, w: vmms.w, h };
  const box = { x: child.x, y, w: child.w, h };
  const inset = title ? 4 : 2;
  const room = h - title - 2 * inset;
  const shown = channelsThatFit(channels, Math.max(1, Math.floor(room / LANE)), chosen);
  const laneHeight = Math.min(48, room / Math.max(1, shown.length));
  const chip = Math.min(132, worker.w * 0.5);
  const chipHeight = Math.min(30, laneHeight - (title ? 3 : 0));
  const start = y + title + inset + (room - laneHeight * shown.length) / 2;
  const lanes = new Map();
  shown.forEach(([id, device], place) => {
    const middle = start + laneHeight * (place + 0.5);
    lanes.set(id, {
      id, device, y: middle, tight: laneHeight < 31,
      vsp: { x: worker.x + worker.w - chip - 8, y: middle - chipHeight / 2, w: chip, h: chipHeight },
      vsc: { x: box.x + 8, y: middle - chipHeight / 2, w: chip, h: chipHeight },
      from: root.x + root.w, to: child.x,
      store: { x: worker.x + 26, y: middle },
    });
  });
  const synic = { x: box.x + box.w - 70, y: y + title + 2, w: 62, h: h - title - (title ? 8 : 4) };
  const program = { x: box.x + chip + 20, y: y + title + 2, w: synic.x - (box.x + chip + 20) - 10, h: h - title - (title ? 8 : 4) };
  const nameRoom = worker.w - 56 - (shown.length ? chip + 8 : 0);
  return { name, nameRoom, y, h, title, worker, box, lanes, hidden: channels.length - shown.length, synic, program };
}

function centre(box) {
  return [box.x + box.w / 2, box.y + box.h / 2];
}

// The way that an event goes, as a list of points; none where nothing moves.
function wayOf(row, layout) {
  const fields = row.fields || {};
  const vm = layout.rows.get(row.about);
  const toRoot = row.direction === ">root";
  const { boxes: [left, middle, right], trunk, hypervisor } = layout;
  const lane = vm && row.via !== null ? vm.lanes.get(row.via) || null : null;
  const rootPort = [layout.winhv.rail, layout.winhv.y + layout.winhv.h - 20];
  const [call, flagOfRoot, flagOfChild] = [middle, left, right].map((box) => [box.x + box.w / 2, box.y + Math.min(14, box.h / 4)]);
  const cpu = vm ? [vm.synic.x + vm.synic.w - 16, vm.synic.y + vm.synic.h / 2] : null;
  // By the trunk on the right, never through another child.
  const down = vm ? [cpu, [trunk, cpu[1]], [trunk, right.y + 12]] : [];
  const up = [...down].reverse();
  const bus = vm ? [vm.worker.x + 10, vm.worker.y + vm.worker.h / 2] : null;
  switch (row.layer) {
    case "hypercall":
      if (row.answers === ">root" && vm) return [call, [trunk, call[1]], ...up.slice(1)];
      if (row.answers === ">child") return [call, [rootPort[0], call[1]], rootPort];
      if (fields.caller === 1 || !vm) return [rootPort, [rootPort[0], call[1]], call];
      return [...down.slice(0, 2), [trunk, call[1]], call];
    case "msr":
      if (!vm) {
        const way = [rootPort, [rootPort[0], flagOfRoot[1]], flagOfRoot];
        return row.event.startsWith("read") ? way.reverse() : way;
      }
      return row.event.startsWith("read") ? [flagOfChild, [trunk, flagOfChild[1]], ...up.slice(1)] : [...down.slice(0, 2), [trunk, flagOfChild[1]], flagOfChild];
    case "synic":
      if (toRoot) return vm ? [...down.slice(0, 2), [trunk, call[1]], call, flagOfRoot] : [call, flagOfRoot];
      return [rootPort, [rootPort[0], call[1]], call, flagOfChild];
    case "interrupt":
      if (toRoot) return [flagOfRoot, [rootPort[0], flagOfRoot[1]], rootPort];
      return vm ? [flagOfChild, [trunk, flagOfChild[1]], ...up.slice(1)] : [];
    case "port": {
      if (!vm) return [];
      const way = [...down.slice(0, 2), [trunk, call[1]], [rootPort[0], call[1]], rootPort, [rootPort[0], bus[1]], bus];
      return row.event === "port_in" ? way.reverse() : way;
    }
    case "control": {
      if (!vm) return [];
      const way = [...down.slice(0, 2), [trunk, call[1]], [rootPort[0], call[1]], rootPort, [rootPort[0], bus[1]], bus];
      return toRoot ? way : way.reverse();
    }
    case "packet": {
      if (!lane) return [];
      const apart = lane.tight ? 4 : 6;
      const [child, root] = [lane.vsc.x, lane.vsp.x + lane.vsp.w];
      if (toRoot) return [[child, lane.y - apart], [root, lane.y - apart]];
      return [[root, lane.y + apart], [child, lane.y + apart]];
    }
    case "device": {
      if (!lane) return [];
      if (lane.device !== "storage" || !row.event.startsWith("scsi")) return [[lane.vsp.x + 6, lane.y]]; // stays in the VSP
      const [vsp, store] = [[lane.vsp.x, lane.y], [lane.store.x + 16, lane.y]];
      return toRoot ? [vsp, store] : [store, vsp];
    }
    case "state":
      return row.event === "vm_state" && vm ? [centre(layout.vmms), [centre(layout.vmms)[0], vm.worker.y + 10]] : [];
    default:
      return [];
  }
}

// The packet goes into the ring before anybody is told of it; the tap hears of it only when the VSP takes it out.
function writeOf(row, layout) {
  const vm = layout.rows.get(row.about);
  const lane = vm && vm.lanes.get(row.via);
  if (!lane) return [];
  const y = lane.y - (lane.tight ? 4 : 6);
  return [[lane.vsc.x, y], [lane.to - 44, y]];
}

// The same way, its last stretch shorter.
function shortened(points, by) {
  const [[ax, ay], [bx, by_]] = points.slice(-2);
  const length = Math.hypot(bx - ax, by_ - ay);
  const part = length > by ? (length - by) / length : 0.5;
  return [...points.slice(0, -1), [ax + (bx - ax) * part, ay + (by_ - ay) * part]];
}
