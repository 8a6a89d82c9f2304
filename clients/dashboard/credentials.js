/**
 * The key or token that a server may ask for. The tab's session storage keeps it until the tab is closed
 * or the user chooses to forget it. It is never part of the address.
 */

const PLACE = "tickcast-token";
/** Codes of errors and closes that ask for credentials, or for other ones. */
const MISSING = new Set([401, 4002]);
const BAD = new Set([402, 4001]);
const part = (id) => document.getElementById(id);

/** @param {number} code the code of an error or a close */
export const asksForCredentials = (code) => MISSING.has(code) || BAD.has(code);

export class Credentials {
  token = read();
  #onChange;

  /** @param {() => void} onChange called when the credentials change or are forgotten */
  constructor(onChange) {
    this.#onChange = onChange;
    part("key").hidden = !this.token;
    part("key").addEventListener("click", () => this.#open());
    part("key-cancel").addEventListener("click", () => part("key-dialog").close());
    part("key-forget").addEventListener("click", () => this.#keep(""));
    part("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = part("key-text").value.trim();
      if (token) this.#keep(token);
    });
  }

  /** The headers for `fetch`, so that HTTP requests are authorized as well. */
  get headers() {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }

  /** @param {number} code the code of the error or close that asks for credentials */
  ask(code) {
    const isRefused = this.token && BAD.has(code);
    write("key-why", isRefused ? `The server refused this key or token (${code}).` : "This server shows its feeds to those with a key or a token.");
    if (isRefused) {
      this.token = "";
      store("");
    }
    part("key").hidden = false;
    this.#open();
  }

  #open() {
    part("key-text").value = "";
    part("key-forget").hidden = !this.token;
    if (!part("key-dialog").open) part("key-dialog").showModal();
  }

  #keep(token) {
    store(token);
    this.#onChange();
  }
}

function read() {
  try {
    return sessionStorage.getItem(PLACE) ?? "";
  } catch {
    return "";
  }
}

function store(token) {
  if (token) sessionStorage.setItem(PLACE, token);
  else sessionStorage.removeItem(PLACE);
}

function write(id, text) {
  part(id).textContent = text;
}
