// A host that runs: events as they come, by one connection that the browser keeps up by itself.

let instance = "";
let painting = 0;
let afterGap = null; // how the picture looks behind what was dropped, until the next event

function openLive() {
  byId("live").hidden = false;
  follow(true);
  connection = "connecting";
  status();
  const stream = new EventSource(live);
  stream.addEventListener("hello", (message) => {
    const hello = JSON.parse(message.data);
    columns = hello.columns;
    if (hello.instance !== instance) {
      instance = hello.instance;
      recording.clear();
      recording.start(hello.before);
      visible = [];
    }
    connection = "live";
    settle();
    fillFilters();
    if (following || player.place < 0) player.go(visible.length - 1, false);
    ready("live");
  });
  stream.addEventListener("events", (message) => {
    const part = JSON.parse(message.data);
    const old = recording.rows.length;
    recording.add(columns, part.rows);
    // What was dropped may have changed the picture: the host says how it is now.
    if (afterGap && recording.rows.length > old) {
      const row = recording.rows[old];
      row.changes = [...afterGap, ...(row.changes || [])];
      afterGap = null;
    }
    for (const row of recording.rows.slice(old)) if (filter.passes(row)) visible.push(row);
    if (part.requests) recording.addRequests(part.requests);
    if (!painting) painting = requestAnimationFrame(arrived);
  });
  stream.addEventListener("gap", (message) => {
    const gap = JSON.parse(message.data);
    recording.dropped += gap.dropped;
    afterGap = gap.before || null;
    if (afterGap) for (const change of afterGap) recording.enlist(change);
    if (!painting) painting = requestAnimationFrame(arrived);
  });
  stream.addEventListener("end", () => {
    stream.close();
    connection = "the host has ended";
    follow(false);
    byId("live").hidden = true;
    document.body.dataset.mode = "ended";
    status();
  });
  stream.addEventListener("error", () => {
    connection = stream.readyState === EventSource.CLOSED ? "the host does not answer any more" : "connecting again";
    status();
  });
}

// Once a frame, however many batches came.
function arrived() {
  painting = 0;
  const row = current();
  if (recording.trim()) {
    visible = recording.rows.filter((other) => filter.passes(other));
    player.place = row ? visible.indexOf(row) : -1;
    if (row && player.place < 0) player.place = 0;
  }
  settle();
  fillFilters();
  status();
  if (following) player.go(visible.length - 1, false);
  else showPlace();
}

async function askHost(row) {
  try {
    const answer = await fetch(live.replace(/events$/, "decode"), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ layer: row.layer, data: row.data, vm: row.vm, device: (row.fields && row.fields.device) || "", direction: row.direction }),
    });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // it has ended
  }
}
