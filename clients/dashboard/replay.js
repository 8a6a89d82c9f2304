/** The bar that shows the position of a replay, and steers it for everyone who listens. */

const SPEEDS = [0.5, 1, 2, 5, 10, 50, 100, 1000, "max"];
/** Steps of the scrubber over the whole recording. */
const STEPS = 1000;
/** A replay sends its position once a second. */
const SILENT_MS = 3_500;
/** A key that is held down sends more messages than a server accepts. */
const SAY_EVERY_MS = 300;
const part = (id) => document.getElementById(id);

/**
 * @typedef {object} State the server's message of a replay
 * @property {"playing"|"paused"|"ended"} state
 * @property {string} position
 * @property {number|"max"} speed
 * @property {string} from
 * @property {string} to
 */

export class ReplayBar {
  #say;
  /** @type {State|undefined} */
  #state = undefined;
  #toldAt = 0;
  #refusal = "";
  #isDragged = false;
  /** The requested position, until the server answers. */
  #target = undefined;
  #wanted = new Map();
  #saidAt = -Infinity;

  /** @param {(message: object) => boolean} say sends to the server; returns whether it could be sent */
  constructor(say) {
    this.#say = say;
    const scrubber = part("replay-at");
    scrubber.max = String(STEPS);
    part("replay-speed").append(...SPEEDS.map(option));
    part("replay-play").addEventListener("click", () => this.toggle());
    part("replay-speed").addEventListener("change", ({ target }) => {
      const speed = target.value === "max" ? "max" : Number(target.value);
      this.#want({ action: "replay.speed", speed });
    });
    scrubber.addEventListener("input", () => (this.#isDragged = true));
    scrubber.addEventListener("change", () => this.#seek(scrubber.valueAsNumber / STEPS));
    for (const end of ["pointerup", "pointercancel", "blur"]) {
      scrubber.addEventListener(end, () => (this.#isDragged = false));
    }
  }

  /** @param {State} state */
  take(state, now) {
    this.#state = state;
    this.#toldAt = now;
    this.#target = undefined;
  }

  /** The server does not allow steering on this connection, and gives the reason. */
  refuse(why) {
    this.#refusal = why;
    this.#target = undefined;
  }

  /** Another connection may be allowed to steer. */
  allow() {
    this.#refusal = "";
  }

  /** Pause or resume. Returns false if there is no replay. */
  toggle() {
    const state = this.#state?.state;
    if (state === undefined) return false;
    if (state !== "ended" && !part("replay-play").disabled) {
      this.#want({ action: state === "playing" ? "replay.pause" : "replay.resume" });
    }
    return true;
  }

  #seek(ratio) {
    this.#isDragged = false;
    this.#target = timeAt(this.#state, ratio);
    this.#want({ action: "replay.seek", position: this.#target });
  }

  #want(message) {
    this.#wanted.set(message.action, message);
  }

  /** @param {boolean} isConnected */
  draw(now, isConnected) {
    const state = this.#state;
    if (!state) return;
    this.#speak(now);
    const silentMs = now - this.#toldAt;
    const note = this.#refusal
      ? `Read-only: ${this.#refusal}.`
      : isConnected && silentMs > SILENT_MS ? silence(state, silentMs) : "";
    const isFixed = Boolean(note) || !isConnected;
    part("replay").hidden = false;
    write("replay-note", note);
    write("replay-play", state.state === "playing" ? "Pause" : "Play");
    part("replay-play").disabled = isFixed || state.state === "ended";
    part("replay-speed").disabled = part("replay-at").disabled = isFixed;
    this.#drawSpeed(String(state.speed));
    this.#drawPosition(state, isFixed && !this.#refusal ? 0 : silentMs);
  }

  #speak(now) {
    if (!this.#wanted.size || now - this.#saidAt < SAY_EVERY_MS) return;
    this.#saidAt = now;
    const [action, message] = this.#wanted.entries().next().value;
    this.#wanted.delete(action);
    if (!this.#say(message)) this.#wanted.clear();
  }

  #drawSpeed(speed) {
    const list = part("replay-speed");
    // While the control has the focus, the user may be about to choose.
    if (list.value === speed || this.#wanted.has("replay.speed")) return;
    // Other clients may have chosen a speed that is not offered here.
    if (![...list.options].some(({ value }) => value === speed)) list.append(option(speed));
    list.value = speed;
  }

  #drawPosition(state, passedMs) {
    const scrubber = part("replay-at");
    const position = this.#isDragged
      ? timeAt(state, scrubber.valueAsNumber / STEPS)
      : (this.#target ?? positionAfter(state, passedMs));
    const step = String(Math.round(ratioOf(state, position) * STEPS));
    if (!this.#isDragged && scrubber.value !== step) scrubber.value = step;
    write("replay-when", shown(position));
    write("replay-from", shown(state.from));
    write("replay-to", shown(state.to));
    if (scrubber.ariaValueText !== shown(position)) scrubber.ariaValueText = shown(position);
  }
}

/**
 * The position of a replay, some time after its last message.
 *
 * @param {State} state
 * @param {number} passedMs
 * @returns {string} RFC 3339, UTC
 */
export function positionAfter({ state, position, speed, to }, passedMs) {
  if (state !== "playing" || speed === "max") return position;
  const ms = Date.parse(position) + speed * passedMs;
  return ms >= Date.parse(to) ? to : new Date(ms).toISOString();
}

/** The time at a fraction of the recording; the two ends are exactly those that the server sent. */
export function timeAt({ from, to }, ratio) {
  if (ratio <= 0) return from;
  if (ratio >= 1) return to;
  const start = Date.parse(from);
  return new Date(start + ratio * (Date.parse(to) - start)).toISOString();
}

/** The fraction of the recording before a time, from 0 to 1. */
export function ratioOf({ from, to }, time) {
  const start = Date.parse(from);
  const ratio = (Date.parse(time) - start) / (Date.parse(to) - start);
  return Math.min(Math.max(ratio || 0, 0), 1);
}

function silence({ state }, ms) {
  if (state === "ended") return "The replay is over.";
  return `No word of the replay for ${Math.floor(ms / 1000)} s.`;
}

function option(speed) {
  return new Option(speed === "max" ? "max" : `${speed}×`, String(speed));
}

const shown = (time) => `${time.slice(0, 10)} ${time.slice(11, 19)}`;

function write(id, text) {
  const element = part(id);
  if (element.textContent !== text) element.textContent = text;
}
