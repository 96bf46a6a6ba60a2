// Environments and policies as in ppo_lab/envs and ppo_lab/networks: states and activations are
// rounded to float32 where Python's are. No state is kept here; the page draws what these return.
"use strict";
const PPO = (() => {
  const f32 = Math.fround;
  const clamp = (x, most) => Math.min(Math.max(x, -most), most);

  const cartPole = {
    size: 4, limit: 500, seconds: 0.02,
    start: (uniform) => Float32Array.from({ length: 4 }, () => uniform(-0.05, 0.05)),
    observe: (s) => s,
    step(s, action) {
      const [, v, theta, omega] = s;
      const cos = Math.cos(theta), sin = Math.sin(theta), total = 1.1, moment = 0.05 / total;
      const push = (action ? 10 : -10) / total + moment * omega * omega * sin;
      const alpha = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos * cos / total));
      const acceleration = push - moment * alpha * cos;
      const next = Float32Array.from([v, acceleration, omega, alpha], (d, i) => s[i] + 0.02 * d);
      const ended = Math.abs(next[0]) > 2.4 || Math.abs(next[2]) > f32(12 * Math.PI / 180);
      return { state: next, reward: 1, ended };
    },
  };

  function acrobotDerivative([theta1, theta2, omega1, omega2], torque) {
    const sin2 = Math.sin(theta2), d1 = Math.cos(theta2) + 3.5, d2 = 0.5 * d1 - 0.5;
    const phi2 = 4.9 * Math.sin(theta1 + theta2);
    const phi1 = phi2 + 14.7 * Math.sin(theta1) - (omega1 + 0.5 * omega2) * omega2 * sin2;
    const push = torque - phi2 + d2 / d1 * phi1 - 0.5 * omega1 * omega1 * sin2;
    const alpha2 = push / (1.25 - d2 * d2 / d1);
    return [omega1, omega2, -(phi1 + d2 * alpha2) / d1, alpha2];
  }
  const acrobot = {
    size: 4, limit: 500, seconds: 0.2,
    start: (uniform) => Float32Array.from({ length: 4 }, () => uniform(-0.1, 0.1)),
    observe: ([a, b, u, v]) => [Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b), u, v],
    step(s, action) {
      const at = (k, h) => acrobotDerivative(Array.from(s, (x, i) => x + h * k[i]), action - 1);
      const k1 = at([0, 0, 0, 0], 0), k2 = at(k1, 0.1), k3 = at(k2, 0.1), k4 = at(k3, 0.2);
      const moved = Array.from(s, (x, i) => x + 0.2 / 6 * (k1[i] + k4[i] + 2 * (k2[i] + k3[i])));
      const turn = 2 * Math.PI, wrap = (x) => x - turn * Math.round(x / turn);
      const next = Float32Array.of(wrap(moved[0]), wrap(moved[1]),
        clamp(moved[2], 4 * Math.PI), clamp(moved[3], 9 * Math.PI));
      const ended = Math.cos(next[0]) + Math.cos(next[0] + next[1]) < -1;
      return { state: next, reward: ended ? 0 : -1, ended };
    },
  };

  const pendulum = {
    size: 2, limit: 200, seconds: 0.05,
    start: (uniform) => Float32Array.of(uniform(-Math.PI, Math.PI), uniform(-1, 1)),
    observe: ([theta, omega]) => [Math.cos(theta), Math.sin(theta), omega],
    step([theta, omega], action) {
      const torque = clamp(action, 2), turn = 2 * Math.PI;
      const angle = ((theta + Math.PI) % turn + turn) % turn - Math.PI;
      const cost = angle * angle + 0.1 * omega * omega + 0.001 * torque * torque;
      const next = f32(clamp(omega + 0.05 * (15 * Math.sin(theta) + 3 * torque), 8));
      return { state: Float32Array.of(theta + 0.05 * next, next), reward: -cost, ended: false };
    },
  };
  const envs = { "CartPole-v1": cartPole, "Acrobot-v1": acrobot, "Pendulum-v1": pendulum };

  const numbers = (text) =>
    new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  // Weights travel as base64 of little-endian float32, row by row (inputs, outputs).
  function load(saved) {
    const layers = saved.layers.map(([weight, bias]) => [numbers(weight), numbers(bias)]);
    const { mean, deviation, clip } = saved;
    const activate = saved.activation === "tanh" ? Math.tanh : (x) => Math.max(x, 0);
    function outputs(observation) {
      let x = Float32Array.from(observation);
      if (mean) x = x.map((value, i) => clamp((value - mean[i]) / deviation[i], clip));
      layers.forEach(([weight, bias], index) => {
        const count = bias.length, y = new Float64Array(bias);
        x.forEach((value, i) => {
          for (let j = 0; j < count; j++) y[j] += value * weight[i * count + j];
        });
        x = Float32Array.from(index < layers.length - 1 ? y.map(activate) : y);
      });
      return x;
    }
    // The most probable action, as ppo_lab.play takes it.
    return (observation) => {
      const y = outputs(observation);
      return saved.discrete ? y.indexOf(Math.max(...y)) : clamp(y[0], 2);
    };
  }

  // A whole episode from a state: its actions, and the sum of its rewards.
  function play(env, policy, start, limit = env.limit) {
    const actions = [];
    let state = Float32Array.from(start), total = 0, ended = false;
    while (!ended && actions.length < limit) {
      actions.push(policy(env.observe(state)));
      const step = env.step(state, actions[actions.length - 1]);
      state = step.state;
      total += step.reward;
      ended = step.ended;
    }
    return { actions, total, ended };
  }

  const uniform = (low, high) => low + (high - low) * Math.random();
  return { envs, load, play, uniform };
})();
if (typeof module !== "undefined") module.exports = PPO;
