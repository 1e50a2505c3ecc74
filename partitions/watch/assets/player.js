// Where we are in the events, and how we go on.

const SPEEDS = [
  ["1 event/s", { events: 1 }], ["2 events/s", { events: 2 }], ["5 events/s", { events: 5 }], ["20 events/s", { events: 20 }],
  ["100 events/s", { events: 100 }], ["1000 events/s", { events: 1000 }],
  ["as it was", { time: 1 }], ["10 × slower", { time: 0.1 }], ["1000 × slower", { time: 0.001 }],
];
const START_SPEED = 1;
const LONGEST_MOVE = 900; // milliseconds for the dot

class Player {
  constructor(onMove, onState) {
    this.onMove = onMove; // (place, duration in ms, places passed)
    this.onState = onState;
    this.length = 0;
    this.place = -1;
    this.playing = false;
    this.speed = SPEEDS[START_SPEED][1];
    this.timeOf = () => 0;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
  }

  // Milliseconds that a dot takes for one event. Where nothing should move, or too fast to be seen, it does not.
  get duration() {
    if (this.still.matches) return 0;
    if (!this.playing) return LONGEST_MOVE * 0.6;
    if (this.speed.events) return this.speed.events > 8 ? 0 : Math.min(LONGEST_MOVE, 900 / this.speed.events);
    return 0;
  }

  go(place, animate = true) {
    const wanted = Math.max(0, Math.min(this.length - 1, place));
    if (!this.length) {
      this.place = -1;
      this.onMove(-1, 0, 0);
      return;
    }
    const passed = wanted - this.place;
    this.place = wanted;
    this.onMove(wanted, animate && passed > 0 ? this.duration : 0, passed);
  }

  play() {
    if (this.playing || !this.length) return;
    if (this.place >= this.length - 1) this.go(0, false);
    this.playing = true;
    this.last = performance.now();
    this.owed = 0;
    this.now = this.timeOf(this.place);
    this.onState();
    requestAnimationFrame((now) => this.tick(now));
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.onState();
  }

  tick(now) {
    if (!this.playing) return;
    const gone = Math.min(1000, Math.max(0, now - this.last)); // a tab in the background does not catch up at once
    this.last = now;
    let place = this.place;
    if (this.speed.events) {
      this.owed += (gone / 1000) * this.speed.events;
      place += Math.floor(this.owed);
      this.owed -= Math.floor(this.owed);
    } else {
      this.now += gone * 1e4 * this.speed.time;
      while (place + 1 < this.length && this.timeOf(place + 1) <= this.now) place += 1;
    }
    if (place > this.place) this.go(place);
    if (this.place >= this.length - 1) {
      this.pause();
      return;
    }
    requestAnimationFrame((next) => this.tick(next));
  }
}
