/**
 * Replays: the bar that shows and changes the position of the feed's replay for all its clients, and the rules
 * for data from before a move.
 */

import { byId, write } from "./dom.js";

const SPEEDS = [0.5, 1, 2, 5, 10, 50, 100, 1000, "max"];
/** Steps of the scrubber over the whole recording. */
const STEPS = 1000;
/** A replay sends its position once a second. */
const SILENT_MS = 3_500;
/** A key that is held down sends more messages than a server accepts. */
const SEND_EVERY_MS = 300;
/** A tick of a step arrives within this time before or after the message about it. */
const STEP_MS = 500;

/**
 * @typedef {object} State the server's message of a replay
 * @property {"playing"|"paused"|"ended"} state
 * @property {string} position
 * @property {number|"max"} speed
 * @property {string} from
 * @property {string} to
 */

export class ReplayBar {
  #send;
  /** @type {State|undefined} */
  #state = undefined;
  #receivedAt = 0;
  #refusal = "";
  #isDragged = false;
  /** The requested position, until the server answers. */
  #target = undefined;
  #unsent = new Map();
  #sentAt = -Infinity;

  /** @param {(message: object) => boolean} send sends to the server; returns whether it could be sent */
  constructor(send) {
    this.#send = send;
    const scrubber = byId("replay-at");
    scrubber.max = String(STEPS);
    byId("replay-speed").append(...SPEEDS.map(speedOption));
    byId("replay-play").addEventListener("click", () => this.toggle());
    byId("replay-speed").addEventListener("change", ({ target }) => {
      const speed = target.value === "max" ? "max" : Number(target.value);
      this.#request({ action: "replay.speed", speed });
    });
    scrubber.addEventListener("input", () => (this.#isDragged = true));
    scrubber.addEventListener("change", () => this.#seek(scrubber.valueAsNumber / STEPS));
    for (const end of ["pointerup", "pointercancel", "blur"]) {
      scrubber.addEventListener(end, () => (this.#isDragged = false));
    }
  }

  /** @param {State} state */
  update(state, now) {
    this.#state = state;
    this.#receivedAt = now;
    this.#target = undefined;
  }

  /** The server does not allow steering on this connection, and gives the reason. */
  setReadOnly(reason) {
    this.#refusal = reason;
    this.#target = undefined;
  }

  /** Another connection may be allowed to steer. */
  setWritable() {
    this.#refusal = "";
  }

  /** Pause or resume. Returns false if there is no replay. */
  toggle() {
    const state = this.#state?.state;
    if (state === undefined) return false;
    if (state !== "ended" && !byId("replay-play").disabled) {
      this.#request({ action: state === "playing" ? "replay.pause" : "replay.resume" });
    }
    return true;
  }

  #seek(ratio) {
    this.#isDragged = false;
    this.#target = timeAt(this.#state, ratio);
    this.#request({ action: "replay.seek", position: this.#target });
  }

  #request(message) {
    this.#unsent.set(message.action, message);
  }

  /** @param {boolean} isConnected */
  draw(now, isConnected) {
    const state = this.#state;
    if (!state) return;
    this.#sendNext(now);
    const silentMs = now - this.#receivedAt;
    const note = this.#refusal
      ? `Read-only: ${this.#refusal}.`
      : isConnected && silentMs > SILENT_MS ? describeSilence(state, silentMs) : "";
    const isFixed = Boolean(note) || !isConnected;
    byId("replay").hidden = false;
    write("replay-note", note);
    write("replay-play", state.state === "playing" ? "Pause" : "Play");
    byId("replay-play").disabled = isFixed || state.state === "ended";
    byId("replay-speed").disabled = byId("replay-at").disabled = isFixed;
    this.#drawSpeed(String(state.speed));
    this.#drawPosition(state, isFixed && !this.#refusal ? 0 : silentMs);
  }

  #sendNext(now) {
    if (!this.#unsent.size || now - this.#sentAt < SEND_EVERY_MS) return;
    this.#sentAt = now;
    const [action, message] = this.#unsent.entries().next().value;
    this.#unsent.delete(action);
    if (!this.#send(message)) this.#unsent.clear();
  }

  #drawSpeed(speed) {
    const list = byId("replay-speed");
    // While the control has the focus, the user may be about to choose.
    if (list.value === speed || this.#unsent.has("replay.speed")) return;
    // Other clients may have chosen a speed that is not offered here.
    if (![...list.options].some(({ value }) => value === speed)) list.append(speedOption(speed));
    list.value = speed;
  }

  #drawPosition(state, passedMs) {
    const scrubber = byId("replay-at");
    const position = this.#isDragged
      ? timeAt(state, scrubber.valueAsNumber / STEPS)
      : (this.#target ?? positionAfter(state, passedMs));
    const step = String(Math.round(ratioOf(state, position) * STEPS));
    if (!this.#isDragged && scrubber.value !== step) scrubber.value = step;
    write("replay-when", formatTime(position));
    write("replay-from", formatTime(state.from));
    write("replay-to", formatTime(state.to));
    if (scrubber.ariaValueText !== formatTime(position)) scrubber.ariaValueText = formatTime(position);
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

function describeSilence({ state }, ms) {
  if (state === "ended") return "The replay has ended.";
  return `No message from the replay for ${Math.floor(ms / 1000)} s.`;
}

function speedOption(speed) {
  return new Option(speed === "max" ? "max" : `${speed}×`, String(speed));
}

const formatTime = (time) => `${time.slice(0, 10)} ${time.slice(11, 19)}`;

// -- data from before a move

/**
 * Which streams of a replay have moved to another time. A replay that goes back sends its state, but in a loop
 * only within a second; and each stream reports a gap, but only with its next tick. Whichever arrives first
 * separates the passes: earlier data belongs to the previous pass, and later data to the current one.
 *
 * A paused replay that is moved forward sends no tick, so its new position reveals the move. A step also changes
 * the position, but sends ticks.
 *
 * One instance for each connection: its gaps and replay messages arrive in the order of the ticks.
 */
export class ReplayMoves {
  #state = undefined;
  /** Streams that have restarted since the last message of the replay. */
  #restarted = new Set();
  #lastTime = "";
  /** When a paused replay moved forward, and from where; 0 if it did not. */
  #forwardAt = 0;
  #forwardFrom = "";

  /** The replay's latest message; undefined if there is none. */
  get state() {
    return this.#state;
  }

  /** The last known position of the replay, milliseconds since 1970; undefined if none is known. */
  get positionMs() {
    return this.#state && Date.parse(this.#state.position);
  }

  /** @param {{t: string}} tick any tick that has arrived */
  addTick({ t }) {
    this.#lastTime = t;
    if (this.#forwardAt && isAfter(t, this.#forwardFrom)) this.#forwardAt = 0;
  }

  /**
   * @param {import("./feed/accounts.js").Gap} gap
   * @returns {boolean} whether its stream has gone back
   */
  addGap({ ch, S, reason }) {
    if (reason !== "epoch" || !this.#state) return false;
    this.#restarted.add(`${ch}/${S}`);
    return true;
  }

  /**
   * @param {State} state
   * @param {number} [now]
   * @returns {(channel: string, symbol: string) => boolean} whether the data of a stream belongs to
   *   an earlier pass
   */
  setState(state, now = 0) {
    const before = this.#state;
    const isBack = before && isAfter(before.position, state.position);
    const restarted = this.#restarted;
    this.#state = state;
    this.#restarted = new Set();
    if (isBack || state.state === "playing") {
      this.#forwardAt = 0;
    } else if (before?.state === "paused" && isAfter(state.position, before.position)) {
      if (!isAfter(this.#lastTime, before.position)) {
        this.#forwardAt ||= now;
        this.#forwardFrom = before.position;
      }
    }
    return (channel, symbol) => isBack === true && !restarted.has(`${channel}/${symbol}`);
  }

  /** Whether a paused replay was moved forward since the last call; if so, all streams have moved. */
  hasMovedForward(now) {
    if (!this.#forwardAt || now - this.#forwardAt < STEP_MS) return false;
    this.#forwardAt = 0;
    return true;
  }
}

/** Compares times as text, which can have any number of fractional digits. */
const isAfter = (a, b) => Date.parse(a) > Date.parse(b);
