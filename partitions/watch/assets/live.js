// A host that runs: events as they come, by one connection that the browser keeps up by itself.

let instance = "";
let painting = 0;

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
    ready("live");
  });
  stream.addEventListener("events", (message) => {
    const part = JSON.parse(message.data);
    if (part.dropped) recording.dropped += part.dropped;
    if (part.before) for (const change of part.before) recording.enlist(change);
    const old = recording.rows.length;
    recording.add(columns, part.rows);
    // What was dropped may have changed the picture: the host says how it is now.
    if (part.before && recording.rows.length > old) {
      const row = recording.rows[old];
      row.changes = [...part.before, ...(row.changes || [])];
    }
    for (const row of recording.rows.slice(old)) if (filter.passes(row)) visible.push(row);
    if (part.requests) recording.addRequests(part.requests);
    if (!painting) painting = requestAnimationFrame(arrived);
  });
  stream.addEventListener("end", () => {
    stream.close();
    connection = "the host has ended";
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
  else if (!player.playing) moved(player.place, 0, 0);
}

async function askHost(row) {
  try {
    const answer = await fetch(live.replace(/events$/, "decode"), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ layer: row.layer, data: row.data, device: (row.fields && row.fields.device) || "", direction: row.direction, version: (row.fields && row.fields.version) || 0 }),
    });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // it has ended
  }
}
