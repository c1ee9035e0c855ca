// The timesteps and noise levels of a scheduler's steps. `s` are its settings, with the tables `kept` (the share of the
// signal that is left at each training timestep) and `logs` (the logarithms of the noise levels there).

export const f = Math.fround;
const even = (value) => (Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));
const linspace = (start, stop, count) => Array.from(
  { length: count }, (_, index) => (index && index === count - 1 ? stop : start + index * ((stop - start) / (count - 1 || 1))),
);

function trailing(first, stride, steps) {
  const delta = first - stride - first; // as numpy's arange
  const count = Math.min(steps, Math.ceil(first / stride));
  return Array.from({ length: count }, (_, index) => even(first + index * delta) - 1);
}

function spaced(s, steps) {
  const count = s.kept.length;
  if (s.timestep_spacing === "linspace") return linspace(0, count - 1, steps).reverse();
  if (s.timestep_spacing === "trailing") return trailing(count, count / steps, steps);
  return Array.from({ length: steps }, (_, index) => (steps - 1 - index) * Math.floor(count / steps) + s.steps_offset);
}

export function rounded(s, steps) {
  const whole = spaced(s, steps).map(even);
  if (whole[0] >= s.kept.length) throw new Error(`${steps} steps start beyond the model's last timestep. Use fewer.`);
  return whole;
}

function spacedAboveEnd(s, steps, count) {
  if (s.timestep_spacing === "linspace") return linspace(0, count - 1, steps + 1).map(even).reverse().slice(0, steps);
  if (s.timestep_spacing === "trailing") return trailing(count, s.kept.length / steps, steps);
  return Array.from({ length: steps }, (_, index) => (steps - index) * Math.floor(count / (steps + 1)) + s.steps_offset);
}

// Noise levels.

export function trainingSigmas(s) {
  const kept = Float32Array.from(s.kept);
  if (s.rescale_betas_zero_snr) kept[kept.length - 1] = 2 ** -24;
  return kept.map((value) => Math.sqrt(f(f(1 - value) / value)));
}

/** Values of a table at places between its entries. */
function interpolated(places, table) {
  return places.map((place) => {
    const low = Math.min(Math.floor(place), table.length - 1);
    return place === low || low + 1 === table.length ? table[low] : (table[low + 1] - table[low]) * (place - low) + table[low];
  });
}

/** The timesteps of noise levels, interpolated in their logarithm. */
function timestepsOf(s, sigmas) {
  return sigmas.map((sigma) => {
    const wanted = Math.log(Math.max(sigma, 1e-10));
    let low = 0;
    while (low < s.logs.length - 2 && s.logs[low + 1] <= wanted) low++;
    const weight = Math.min(Math.max((s.logs[low] - wanted) / f(s.logs[low] - s.logs[low + 1]), 0), 1);
    return (1 - weight) * low + weight * (low + 1);
  });
}

/** Noise levels as a ramp spaces them; null without one. */
function ramped(s, highest, lowest, steps) {
  const [high, low] = [s.sigma_max ?? highest, s.sigma_min ?? lowest];
  const between = (first, last) => linspace(0, 1, steps).map((share) => first + share * (last - first));
  if (s.ramp === "karras") return between(high ** (1 / 7), low ** (1 / 7)).map((root) => root ** 7);
  if (s.ramp === "exponential") return linspace(Math.log(high), Math.log(low), steps).map(Math.exp);
  if (s.ramp === "lu") return between(Math.log(highest), Math.log(lowest)).map(Math.exp);
  return null;
}

/** The noise levels and timesteps of a spacing from other tools; null without one. */
function chosen(s, steps) {
  const last = s.kept.length - 1;
  const places = {
    normal: () => linspace(last, 0, steps),
    "sgm-uniform": () => linspace(last, 0, steps + 1).slice(0, steps),
    simple: () => Array.from({ length: steps }, (_, index) => last - Math.floor(index * (s.kept.length / steps))),
  }[s.levels]?.();
  return places ? [interpolated(places, s.logs).map(Math.exp), places] : null;
}

export function graded(s, steps, table) {
  const own = chosen(s, steps);
  if (own) return own;
  const timesteps = spaced(s, steps).map(f);
  const sigmas = interpolated(timesteps, table);
  const ramp = ramped(s, sigmas[0], sigmas[steps - 1], steps);
  return ramp ? [ramp, timestepsOf(s, ramp)] : [sigmas, timesteps];
}

export function aboveEnd(s, steps, table) {
  const own = chosen(s, steps);
  if (own) return own;
  const ramp = ramped(s, table[table.length - 1], table[0], steps);
  if (!ramp) {
    const clip = s.lambda_min_clipped;
    const count = clip == null ? table.length : s.logs.filter((value) => -value >= clip).length;
    const timesteps = spacedAboveEnd(s, steps, count);
    return [interpolated(timesteps, table), timesteps.map(Math.trunc)];
  }
  const whole = s.beta_schedule !== "squaredcos_cap_v2" && s.ramp !== "exponential";
  return [ramp, timestepsOf(s, ramp).map((timestep) => Math.trunc(whole ? even(timestep) : timestep))];
}

/** Noise levels with the one where sampling ends. */
export function ended(sigmas, last) {
  const levels = [...sigmas, last].map(f);
  if (levels.some((level, index) => index && level >= levels[index - 1] && (index < sigmas.length || level > levels[index - 1]))) {
    throw new Error(`${sigmas.length} steps are too many for this spacing of noise levels. Use fewer.`);
  }
  return levels;
}
