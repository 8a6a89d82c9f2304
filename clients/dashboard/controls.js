/** What people do: keys, and the field that filters, chooses and adds. */

/**
 * @param {HTMLInputElement} field
 * @param {object} does
 * @param {(text: string) => void} does.filter while something is typed
 * @param {(text: string) => boolean} does.enter when it is meant; false: it means nothing, and stays to
 *   be corrected
 */
export function listenToField(field, { filter, enter }) {
  field.addEventListener("input", () => filter(field.value.trim()));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      const text = field.value.trim();
      if (!text || enter(text)) {
        clear();
        // Where nothing else has taken the focus: else the arrow keys would not lead through the list.
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
 * Keys that work wherever no text is being typed.
 *
 * @param {Record<string, () => boolean|void>} keys what each does, by its name; false: nothing, and
 *   the browser is to do what it does otherwise
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

/** Whether a key means something to what has the focus. */
function means(target, key) {
  if (target instanceof HTMLInputElement) return target.type !== "range" || key !== " ";
  if (target instanceof HTMLSelectElement) return true;
  // Arrows scroll what has the focus, where that is something that scrolls.
  if (key.startsWith("Arrow")) return target.closest?.(".tape, .connection") != null;
  // Space presses buttons, but in the list, where Enter does as well.
  return key === " " && target.closest?.("button:not(.pick), summary, a") != null;
}

/**
 * A row of buttons of which one is pressed.
 *
 * @param {HTMLElement} group
 * @param {(value: string) => void} choose given the `value` of the button
 * @returns {(value: string) => void} shows which one is
 */
export function oneOf(group, choose) {
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) button.addEventListener("click", () => choose(button.value));
  return (value) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.value === value));
  };
}
