// Numbers and times for people.

export const NONE = "–";

/** Seconds as a person says them: 850 µs, 12 ms, 3.4 s, 2 min 5 s, 3 h 4 min. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.995) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return NONE;
  return `${perSecond.toFixed(perSecond < 10 ? 1 : 0)}/s`;
}

/** A moment, in seconds since the epoch: the time, with the date unless it is today. */
export function moment(seconds) {
  if (!seconds) return NONE;
  const then = new Date(seconds * 1000);
  const today = then.toDateString() === new Date().toDateString();
  return today ? then.toLocaleTimeString() : then.toLocaleString([], { dateStyle: "short", timeStyle: "short" });
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = count > 0 ? Math.min(Math.floor(Math.log2(count) / 10), 4) : 0;
  return `${(count / 1024 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function counted(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

/** The engine's own library, with its version; the first that is neither omnibus nor python. */
export function library(versions) {
  const found = Object.entries(versions ?? {}).find(([name]) => name !== "omnibus" && name !== "python");
  return found ? found.join(" ") : NONE;
}
