// Noise schedulers, step by step as latentc's `sampling/schedulers` computes them: float32 arrays, float64 coefficients.
//
// A walk has the denoiser's `timesteps`, `start` (the deviation of the initial latents), `scale(sample, call)`,
// `level(call)` (the parts of original and noise before a call) and `step(output, call, sample, noise)`.

import { aboveEnd, ended, f, graded, rounded, trainingSigmas } from "./levels.js";

const FEW_STEPS = 15;

/** The sum of arrays, each times its weight, in float32 and in this order. */
export function mixed(...terms) {
  const total = new Float32Array(terms[0][1].length);
  terms.forEach(([weight, array], place) => {
    const factor = f(weight);
    for (let index = 0; index < total.length; index++) {
      const product = f(factor * array[index]);
      total[index] = place ? total[index] + product : product;
    }
  });
  return total;
}

const divided = (array, by) => array.map((value) => value / f(by));
const clipped = (array, clip) => (clip == null ? array : array.map((value) => Math.min(Math.max(value, -clip), clip)));

// What a denoiser predicts: the noise (epsilon), the original (sample), or the velocity (v_prediction).

/** The original in `alpha * original + sigma * noise`. */
function original(s, output, sample, alpha, sigma) {
  if (s.prediction_type === "sample") return clipped(output, s.clip);
  if (s.prediction_type === "v_prediction") return clipped(mixed([alpha, sample], [-sigma, output]), s.clip);
  return clipped(divided(mixed([1, sample], [-sigma, output]), alpha), s.clip);
}

/** The original in a sample before a call, as the denoiser predicts it: what previews show. */
export function estimate(s, output, sample, level) {
  const unit = Math.hypot(...level);
  const [alpha, sigma] = level.map((part) => part / unit);
  if (s.prediction_type === "epsilon" && alpha === 0) return new Float32Array(sample.length);
  return original({ ...s, clip: null }, output, divided(sample, unit), alpha, sigma);
}

/** The noise in `alpha * original + sigma * noise`. */
function noiseIn(s, output, sample, alpha, sigma) {
  if (s.prediction_type === "epsilon") return output;
  if (s.prediction_type === "v_prediction") return mixed([alpha, output], [sigma, sample]);
  return divided(mixed([1, sample], [-alpha, output]), sigma);
}

/** How `original + sigma * noise` grows with sigma. */
function slope(s, output, sample, sigma) {
  let start = output;
  if (s.prediction_type === "epsilon") start = mixed([1, sample], [-sigma, output]);
  if (s.prediction_type === "v_prediction") start = mixed([-sigma / Math.sqrt(sigma ** 2 + 1), output], [1 / (sigma ** 2 + 1), sample]);
  return divided(mixed([1, sample], [-1, clipped(start, s.clip)]), sigma);
}

const startOf = (s, highest) => (s.timestep_spacing === "leading" ? Math.sqrt(highest ** 2 + 1) : highest);
const unscaled = (sample) => sample;
const byVariance = (kept) => [Math.sqrt(kept), Math.sqrt(1 - kept)];

/** What walks have in common whose samples are `original + sigma * noise`. */
function leveled(s, timesteps, sigmas, at = (call) => call) {
  return {
    timesteps,
    start: startOf(s, sigmas[0]),
    scale: (sample, call) => divided(sample, Math.sqrt(sigmas[at(call)] ** 2 + 1)),
    level: (call) => [1, sigmas[at(call)]],
  };
}

// The algorithms.

function ddim(s, steps) {
  const timesteps = rounded(s, steps);
  const stride = Math.floor(s.kept.length / steps);
  const final = s.set_alpha_to_one ? 1 : s.kept[0];
  const after = (timestep) => (timestep >= stride ? s.kept[timestep - stride] : final);
  return {
    timesteps,
    start: 1,
    scale: unscaled,
    level: (call) => byVariance(s.kept[timesteps[call]]),
    step(output, call, sample) {
      const level = byVariance(s.kept[timesteps[call]]);
      const next = after(timesteps[call]);
      return mixed(
        [Math.sqrt(next), original(s, output, sample, ...level)],
        [Math.sqrt(Math.max(1 - next, 0)), noiseIn(s, output, sample, ...level)],
      );
    },
  };
}

function lcm(s, steps) {
  const usable = s.original_inference_steps;
  if (steps > usable) throw new Error(`The model was distilled on ${usable} steps, but ${steps} were requested. Use 1 to ${usable}.`);
  const timesteps = Array.from(
    { length: steps }, (_, index) => (usable - Math.floor(index * (usable / steps))) * Math.floor(s.kept.length / usable) - 1,
  );
  return {
    timesteps,
    start: 1,
    scale: unscaled,
    level: (call) => byVariance(s.kept[timesteps[call]]),
    step(output, call, sample, noise) {
      const start = original(s, output, sample, ...byVariance(s.kept[timesteps[call]]));
      const time = timesteps[call] * s.timestep_scaling;
      const power = time ** 2 + 0.25;
      const consistent = mixed([time / Math.sqrt(power), start], [0.25 / power, sample]);
      if (call + 1 === steps) return consistent;
      const [kept, added] = byVariance(s.kept[timesteps[call + 1]]);
      return mixed([kept, consistent], [added, noise()]);
    },
  };
}

const RUNGE_KUTTA = [1 / 6, 1 / 3, 1 / 3, 1 / 6];
const ADAMS_BASHFORTH = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]];

function pndmCalls(s, timesteps, stride) {
  const plain = (timestep) => [timestep, timestep - stride];
  if (s.skip_prk_steps) {
    if (timesteps.length === 1) return [timesteps, timesteps.map(plain)];
    const calls = [timesteps[0], ...timesteps.slice(1, 2), ...timesteps.slice(1)];
    const moves = calls.map(plain);
    moves[1] = [timesteps[1] + stride, timesteps[1]];
    return [calls, moves];
  }
  if (timesteps.length <= 3) throw new Error("PNDM starts with 3 Runge-Kutta steps. Use at least 4 steps.");
  const half = Math.floor(stride / 2);
  const [calls, moves] = [[], []];
  for (let index = 0; index < 3; index++) {
    const [start, stop] = timesteps.slice(index, index + 2);
    calls.push(start, stop + half, stop + half, stop);
    moves.push([start, start - half], [start, stop + half], [start, stop], [start, stop]);
  }
  const rest = timesteps.slice(3);
  return [[...calls, ...rest], [...moves, ...rest.map(plain)]];
}

function pndm(s, steps) {
  const [timesteps, moves] = pndmCalls(s, rounded(s, steps), Math.floor(s.kept.length / steps));
  const final = s.set_alpha_to_one ? 1 : s.kept[0];
  let [outputs, slopes, began] = [[], [], null];
  function moved(output, call, sample) {
    const [start, stop] = moves[call];
    const before = s.kept[start];
    const after = stop >= 0 ? s.kept[stop] : final;
    const noise = noiseIn(s, output, sample, ...byVariance(before));
    const divisor = before * Math.sqrt(1 - after) + Math.sqrt(before * (1 - before) * after);
    return mixed([Math.sqrt(after / before), sample], [(before - after) / divisor, noise]);
  }
  function multistep(output, call, sample) {
    outputs = [...outputs.slice(-3), output];
    const terms = ADAMS_BASHFORTH[outputs.length - 1].map((weight, back) => [weight, outputs[outputs.length - 1 - back]]);
    return moved(mixed(...terms), call, sample);
  }
  return {
    timesteps,
    start: 1,
    scale: unscaled,
    level: (call) => byVariance(s.kept[timesteps[call]]),
    step(output, call, sample) {
      if (s.skip_prk_steps) {
        if (call === 0) began = sample;
        return call === 1 ? moved(mixed([0.5, output], [0.5, outputs[outputs.length - 1]]), call, began) : multistep(output, call, sample);
      }
      if (call >= 12) return multistep(output, call, sample);
      if (call % 4 === 0) {
        outputs.push(output);
        [began, slopes] = [sample, []];
      }
      slopes.push(output);
      const taken = call % 4 === 3 ? mixed(...slopes.map((one, index) => [RUNGE_KUTTA[index], one])) : output;
      return moved(taken, call, began);
    },
  };
}

function euler(s, steps) {
  const table = trainingSigmas(s);
  const [levels, timesteps] = graded(s, steps, table);
  const sigmas = ended(levels, s.final_sigmas_type === "sigma_min" ? table[0] : 0);
  return {
    ...leveled(s, timesteps, sigmas),
    step: (output, call, sample) => mixed([1, sample], [sigmas[call + 1] - sigmas[call], slope(s, output, sample, sigmas[call])]),
  };
}

/** The level to step down to, and the noise to add there, in float32. */
function ancestral(high, low) {
  const [above, below] = [f(high * high), f(low * low)];
  const up = Math.min(low, f(Math.sqrt(f(f(below * f(above - below)) / above))));
  return [f(Math.sqrt(f(below - f(up * up)))), up];
}

function eulerAncestral(s, steps) {
  const [levels, timesteps] = graded(s, steps, trainingSigmas(s));
  const sigmas = ended(levels, 0);
  return {
    ...leveled(s, timesteps, sigmas),
    step(output, call, sample, noise) {
      const [down, up] = ancestral(sigmas[call], sigmas[call + 1]);
      const moved = mixed([1, sample], [down - sigmas[call], slope(s, output, sample, sigmas[call])]);
      return up > 0 ? mixed([1, moved], [up, noise()]) : moved;
    },
  };
}

function heun(s, steps) {
  const [levels, timesteps] = graded(s, steps, trainingSigmas(s));
  const sigmas = ended(levels, 0);
  let began = null;
  return {
    ...leveled(s, timesteps.flatMap((timestep) => [timestep, timestep]).slice(1), sigmas, (call) => (call + 1) >> 1),
    step(output, call, sample) {
      const tangent = slope(s, output, sample, sigmas[(call + 1) >> 1]);
      const width = sigmas[(call >> 1) + 1] - sigmas[call >> 1];
      if (call % 2) return mixed([1, began[0]], [width / 2, began[1]], [width / 2, tangent]);
      began = [sample, tangent];
      return mixed([1, sample], [width, tangent]);
    },
  };
}

/** The integrals of the Lagrange polynomials of nodes from the last node to `stop`, by Simpson's rule. */
function lagrange(nodes, stop) {
  const start = nodes[nodes.length - 1];
  return nodes.map((node, here) => {
    const at = (place) => nodes.reduce((product, other, index) => (index === here ? product : product * ((place - other) / (node - other))), 1);
    return ((stop - start) / 6) * (at(start) + at(stop) + 4 * at((start + stop) / 2));
  });
}

function lms(s, steps) {
  const [levels, timesteps] = graded(s, steps, trainingSigmas(s));
  const sigmas = ended(levels, 0);
  let slopes = [];
  return {
    ...leveled(s, timesteps, sigmas),
    step(output, call, sample) {
      slopes = [...slopes.slice(-3), slope(s, output, sample, sigmas[call])];
      const weights = lagrange(sigmas.slice(call + 1 - slopes.length, call + 1), sigmas[call + 1]);
      return mixed([1, sample], ...slopes.map((one, index) => [weights[index], one]));
    },
  };
}

// DPM-Solver and DPM-Solver++: an exponential integrator of the last predictions in log-SNR.

const logSnr = (level) => (level > 0 ? -Math.log(level) : Infinity);
const unit = (level) => {
  const alpha = 1 / Math.sqrt(level ** 2 + 1);
  return [alpha, level * alpha];
};

/** The latest prediction and its first and second derivatives, in units of the step. */
function differences(predictions, levels) {
  const known = levels.slice(0, -1).map(logSnr);
  const count = predictions.length;
  if (count === 1) return predictions;
  const width = logSnr(levels[count]) - known[count - 1];
  const slopes = predictions.slice(1).map((later, index) => mixed(
    [width / (known[index + 1] - known[index]), mixed([1, later], [-1, predictions[index]])],
  ));
  if (count === 2) return [predictions[1], slopes[0]];
  const [turn, wide] = [mixed([1, slopes[1]], [-1, slopes[0]]), known[2] - known[0]];
  return [predictions[2], mixed([1, slopes[1]], [(known[2] - known[1]) / wide, turn]), mixed([width / wide, turn])];
}

/** The weights of the sample, of each of `differences`, and of fresh noise. */
function coefficients(s, levels) {
  const [before, after] = levels.slice(-2);
  const width = logSnr(after) - logSnr(before);
  const [[alpha, sigma], [alphaAfter, sigmaAfter]] = [unit(before), unit(after)];
  const random = s.algorithm_type.startsWith("sde-");
  let [kept, scale, h, spread] = [sigmaAfter / sigma, alphaAfter, -width, 0];
  if (!s.algorithm_type.endsWith("++")) {
    [kept, scale, h] = [alphaAfter / alpha, (random ? 2 : 1) * sigmaAfter, width];
    if (random) spread = sigmaAfter * Math.sqrt(Math.expm1(2 * h));
  } else if (random) {
    [kept, h] = [kept * Math.exp(-width), -2 * width];
    spread = sigmaAfter * Math.sqrt(-Math.expm1(h));
  }
  const weights = [-scale * Math.expm1(h)];
  if (levels.length === 3 && s.solver_type !== "heun") weights.push(weights[0] / 2);
  else if (levels.length > 2) weights.push(h ? -scale * (Math.expm1(h) / h - 1) : 0);
  if (levels.length > 3) weights.push(h ? -scale * ((Math.expm1(h) - h) / h ** 2 - 0.5) : 0);
  return [kept, weights, spread];
}

function dpmSolver(s, steps) {
  const table = trainingSigmas(s);
  const [levels, timesteps] = aboveEnd(s, steps, table);
  const sigmas = ended(levels, s.final_sigmas_type === "sigma_min" ? table[0] : 0);
  const predict = s.algorithm_type.endsWith("++") ? original : noiseIn;
  let predictions = [];
  function orderAt(call) {
    const left = steps - call;
    if (left === 1 && (s.euler_at_final || sigmas[steps] === 0)) return 1;
    return s.lower_order_final && steps < FEW_STEPS ? Math.min(s.solver_order, left) : s.solver_order;
  }
  return {
    timesteps,
    start: 1,
    scale: unscaled,
    level: (call) => unit(sigmas[call]),
    step(output, call, sample, noise) {
      const predicted = predict(s, output, sample, ...unit(sigmas[call]));
      predictions = [...predictions, predicted].slice(-s.solver_order);
      const order = Math.min(orderAt(call), predictions.length);
      const around = sigmas.slice(call + 1 - order, call + 2);
      const [kept, weights, spread] = coefficients(s, around);
      const terms = [[kept, sample], ...differences(predictions.slice(-order), around).map((one, index) => [weights[index], one])];
      if (spread > 0) terms.push([spread, noise()]);
      return mixed(...terms);
    },
  };
}

const KINDS = { ddim, lcm, pndm, euler, "euler-ancestral": eulerAncestral, heun, lms, "dpm-solver": dpmSolver };

/** The walk of one request; `s` are the package's settings of a scheduler, with its tables `kept` and `logs`. */
export function schedule(s, steps) {
  const count = s.kept.length;
  if (!(Number.isInteger(steps) && steps >= 1 && steps <= count)) throw new Error(`${steps} is not a valid number of steps. Use 1 to ${count}.`);
  const walk = KINDS[s.kind](s, steps);
  return { ...walk, timesteps: walk.timesteps.map(f) };
}
