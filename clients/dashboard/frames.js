/** When to draw: on animation frames, and never while nobody looks. */

const MEASURED = 20;
const USUAL_MS = 1000 / 60;

/**
 * @returns {Promise<number>} milliseconds between two frames; that of most screens where the page is
 *   hidden and gets none
 */
export function frameInterval() {
  return new Promise((resolve) => {
    const times = [];
    const note = (time) => {
      times.push(time);
      if (times.length <= MEASURED) requestAnimationFrame(note);
      else resolve(median(times));
    };
    requestAnimationFrame(note);
    setTimeout(() => resolve(USUAL_MS), 1000);
  });
}

function median(times) {
  const steps = times.slice(1).map((time, at) => time - times[at]);
  return steps.sort((a, b) => a - b)[steps.length >> 1];
}

/**
 * Draw on every frame in which something may have changed.
 *
 * @param {(now: number) => void} draw
 */
export function onEachFrame(draw) {
  const again = () => {
    draw(performance.now());
    requestAnimationFrame(again);
  };
  requestAnimationFrame(again);
}
