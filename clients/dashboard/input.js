/** User input: keys, the field that filters, selects and adds symbols, and the dialog that asks for a key. */

import { byId, write } from "./dom.js";
import { rejectsCredentials } from "./status.js";

const STORAGE_KEY = "tickcast-token";

/**
 * @param {HTMLInputElement} field
 * @param {object} handlers
 * @param {(text: string) => void} handlers.filter called while the user types
 * @param {(text: string) => boolean} handlers.enter called on Enter; false means that the text is not valid,
 * and stays in the field to be corrected
 */
export function bindField(field, { filter, enter }) {
  field.addEventListener("input", () => filter(field.value.trim()));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      const text = field.value.trim();
      if (!text || enter(text)) {
        clear();
        // No effect if something else took the focus; otherwise the arrow keys would stay in the field.
        field.blur();
      }
    } else if (event.key === "Escape") {
      clear();
      field.blur();
    } else {
      return;
    }
    event.preventDefault();
  });

  function clear() {
    field.value = "";
    filter("");
  }
}

/**
 * Keys that work wherever the user is not typing text.
 *
 * @param {Record<string, () => boolean|void>} keys the action of each key, by its name; false means that
 * the action did nothing, and the browser should do its default
 */
export function bindKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const act = keys[key];
    if (!act || hasMeaning(target, key) || (key === " " && event.repeat)) return;
    if (act() !== false) event.preventDefault();
  });
}

/** Whether a key has a meaning for the focused element. */
function hasMeaning(target, key) {
  if (target instanceof HTMLInputElement) return target.type !== "range" || key !== " ";
  if (target instanceof HTMLSelectElement) return true;
  // Arrows scroll the focused element, if it can scroll.
  if (key.startsWith("Arrow")) return target.closest?.(".trades, .connection") != null;
  // Space presses buttons, except in the list, where Enter does the same.
  return key === " " && target.closest?.("button:not(.pick), summary, a") != null;
}

/**
 * A row of buttons, one of which is pressed.
 *
 * @param {HTMLElement} group
 * @param {(value: string) => void} onChange called with the `value` of the button
 * @returns {(value: string) => void} marks the button with this value as pressed
 */
export function bindGroup(group, onChange) {
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) button.addEventListener("click", () => onChange(button.value));
  return (value) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.value === value));
  };
}

/**
 * The key or token that a server may require. The tab's session storage keeps it until the tab is closed or the
 * user chooses to forget it. It is never part of the address.
 */
export class Credentials {
  token = readToken();
  #onChange;

  /** @param {() => void} onChange called when the credentials change or are forgotten */
  constructor(onChange) {
    this.#onChange = onChange;
    byId("key").hidden = !this.token;
    byId("key").addEventListener("click", () => this.#open());
    byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
    byId("key-forget").addEventListener("click", () => this.#save(""));
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = byId("key-text").value.trim();
      if (token) this.#save(token);
    });
  }

  /** The headers for `fetch`, so that HTTP requests are authorized as well. */
  get headers() {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }

  /** @param {number} code the code of the error or close that asks for credentials */
  ask(code) {
    const isRejected = this.token && rejectsCredentials(code);
    write("key-why", isRejected ? `The server rejected this key or token (${code}).` : "This server requires a key or a token.");
    if (isRejected) {
      this.token = "";
      storeToken("");
    }
    byId("key").hidden = false;
    this.#open();
  }

  #open() {
    byId("key-text").value = "";
    byId("key-forget").hidden = !this.token;
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
  }

  #save(token) {
    storeToken(token);
    this.#onChange();
  }
}

function readToken() {
  try {
    return sessionStorage.getItem(STORAGE_KEY) ?? "";
  } catch {
    return "";
  }
}

function storeToken(token) {
  if (token) sessionStorage.setItem(STORAGE_KEY, token);
  else sessionStorage.removeItem(STORAGE_KEY);
}
