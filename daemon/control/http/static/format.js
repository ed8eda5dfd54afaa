/** Numbers as people read them. */

const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const oneDigit = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 1 });

/** What stands where there is no number. */
export const NOTHING = "–";

/** 1234 -> "1,234"; 1.234 -> "1.2" below 100 when it is no whole number. */
export function count(value) {
  if (!Number.isFinite(value)) {
    return NOTHING;
  }
  return Number.isInteger(value) || Math.abs(value) >= 100 ? whole.format(value) : oneDigit.format(value);
}

/** A duration in milliseconds, in the unit that suits it. */
export function duration(milliseconds) {
  if (!Number.isFinite(milliseconds)) {
    return NOTHING;
  }
  if (milliseconds < 1) {
    return `${whole.format(milliseconds * 1000)} µs`;
  }
  if (milliseconds < 1000) {
    return `${milliseconds < 10 ? oneDigit.format(milliseconds) : whole.format(milliseconds)} ms`;
  }
  const seconds = milliseconds / 1000;
  if (seconds < 60) {
    return `${seconds < 10 ? seconds.toFixed(2) : oneDigit.format(seconds)} s`;
  }
  const minutes = Math.floor(Math.round(seconds) / 60);
  return `${whole.format(minutes)} min ${Math.round(seconds) % 60} s`;
}

/** A count per second. */
export function rate(perSecond) {
  return Number.isFinite(perSecond) ? `${count(perSecond)}/s` : NOTHING;
}

/** Bytes in powers of 1,024. */
export function bytes(value) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? whole.format(value) : oneDigit.format(value)} ${units[unit]}`;
}

/** One thing or several: plural(1, "frame") -> "1 frame". */
export function plural(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}
