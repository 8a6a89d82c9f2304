/** User input: keys, and the field that filters, selects and adds symbols. */

/**
 * @param {HTMLInputElement} field
 * @param {object} does
 * @param {(text: string) => void} does.filter called while the user types
 * @param {(text: string) => boolean} does.enter called on Enter; false means that the text is not valid,
 * and stays in the field to be corrected
 */
export function listenToField(field, { filter, enter }) {
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
export function listenToKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const does = keys[key];
    if (!does || means(target, key) || (key === " " && event.repeat)) return;
    if (does() !== false) event.preventDefault();
  });
}

/** Whether a key has a meaning for the focused element. */
function means(target, key) {
  if (target instanceof HTMLInputElement) return target.type !== "range" || key !== " ";
  if (target instanceof HTMLSelectElement) return true;
  // Arrows scroll the focused element, if it can scroll.
  if (key.startsWith("Arrow")) return target.closest?.(".tape, .connection") != null;
  // Space presses buttons, except in the list, where Enter does the same.
  return key === " " && target.closest?.("button:not(.pick), summary, a") != null;
}

/**
 * A row of buttons, one of which is pressed.
 *
 * @param {HTMLElement} group
 * @param {(value: string) => void} choose called with the `value` of the button
 * @returns {(value: string) => void} marks the button with this value as pressed
 */
export function oneOf(group, choose) {
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) button.addEventListener("click", () => choose(button.value));
  return (value) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.value === value));
  };
}
