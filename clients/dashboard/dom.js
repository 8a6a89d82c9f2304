/** Elements of the page, and when to draw: on animation frames, and never while the page is hidden. */

export const byId = (id) => document.getElementById(id);

/** Write a text into an element, unless it is already there. */
export function write(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

const MEASURED = 20;
const USUAL_MS = 1000 / 60;

/**
 * @returns {Promise<number>} milliseconds between two frames; if the page is hidden and gets none, the
 *   value of most screens
 */
export function frameInterval() {
  return new Promise((resolve) => {
    const times = [];
    const recordFrame = (time) => {
      times.push(time);
      if (times.length <= MEASURED) requestAnimationFrame(recordFrame);
      else resolve(median(times));
    };
    requestAnimationFrame(recordFrame);
    setTimeout(() => resolve(USUAL_MS), 1000);
  });
}

function median(times) {
  const steps = times.slice(1).map((time, at) => time - times[at]);
  return steps.sort((a, b) => a - b)[steps.length >> 1];
}

/**
 * Draw repeatedly, each time just before an animation frame.
 *
 * @param {(now: number) => void} draw called just before the frame and not in it: if it requests a
 *   frame itself, as the chart does, it gets the same one, and the page is painted once
 * @param {number} everyMs the shortest interval. A timer precedes each frame, because a request for a
 *   frame makes the browser check the whole page for changes
 */
export function onFrames(draw, everyMs) {
  const again = (time) => {
    // Shorter by half a frame, so that a delayed timer does not miss the next one.
    const passed = performance.now() - time;
    setTimeout(drawOnce, Math.max(0, everyMs - passed - USUAL_MS / 2));
  };
  const drawOnce = () => {
    draw(performance.now());
    requestAnimationFrame(again);
  };
  requestAnimationFrame(again);
}
