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
 * Draw again and again, once before an animation frame.
 *
 * @param {(now: number) => void} draw called just before the frame and not in it: what it asks for
 *   frames itself, as the chart does, so gets the same one, and the page is painted once
 * @param {number} everyMs at most so often. A timer before each frame, because whoever asks for a
 *   frame makes the browser look through the whole page for what has changed
 */
export function onFrames(draw, everyMs) {
  const again = (time) => {
    // Short by half a frame, so that the next one is not missed for a delayed timer.
    const passed = performance.now() - time;
    setTimeout(drawOnce, Math.max(0, everyMs - passed - USUAL_MS / 2));
  };
  const drawOnce = () => {
    draw(performance.now());
    requestAnimationFrame(again);
  };
  requestAnimationFrame(again);
}
