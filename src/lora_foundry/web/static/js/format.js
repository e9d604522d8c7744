// Times, sizes and shares as people read them.

/** Seconds as "48 s", "3 min 20 s", "2 h 05 min". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

/** About how long: a guess should not pretend to seconds. */
export function about(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  return seconds < 10 ? "a few seconds left" : `about ${roughly(seconds)} left`;
}

export function roughly(seconds) {
  if (seconds < 90) return `${Math.max(5, Math.round(seconds / 5) * 5)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** A moment as "just now", "12 min ago", "yesterday", or its date. */
export function ago(text) {
  const moment = asDate(text);
  if (!moment) return "";
  const seconds = (Date.now() - moment.getTime()) / 1000;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return moment.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

/** The server writes UTC, with or without saying so. */
export function asDate(text) {
  if (!text) return null;
  const zoned = /(Z|[+-]\d\d:?\d\d)$/.test(text) ? text : `${text.replace(" ", "T")}Z`;
  const moment = new Date(zoned);
  return Number.isNaN(moment.getTime()) ? null : moment;
}

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A share or score with two digits; a dash where nothing was measured. */
export const share = (value) => (value === null || value === undefined ? "–" : (value + 0).toFixed(2));

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
