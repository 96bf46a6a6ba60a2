"""One iteration of PPO in plain torch, written from the papers: nothing of ppo_lab is imported.

One run without a lane axis, in double precision, with loops where the package has tricks. Sources:
PPO, arXiv:1707.06347; GAE, arXiv:1506.02438; Adam, arXiv:1412.6980; dual clip, arXiv:1912.09729;
"The 37 implementation details of PPO" (https://iclr-blog-track.github.io).

Shapes: T steps of N environments, R = T * N rows (row t * N + n), B rows of a minibatch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import Tensor

__all__ = ["Keys", "Reference"]


@dataclass(frozen=True)
class Keys:
    """A run's keys with the defaults that the README names."""

    epsilon: float | None = 0.2
    epsilon_high: float | None = None
    epsilon_schedule: str = "constant"
    dual_clip: float | None = None
    value_epsilon: float | None = None
    target_kl: float | None = None
    lr: float = 3e-4
    lr_schedule: str = "constant"
    adam_eps: float = 1e-5
    max_grad_norm: float | None = 0.5
    separate_grad_clip: bool = False
    gamma: float = 0.99
    gae_lambda: float = 0.95
    bootstrap_truncated: bool = True
    num_epochs: int = 4
    num_minibatches: int = 4
    advantage_normalization: str = "minibatch"
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    total_steps: int = 100_000
    activation: str = "tanh"


class Reference:
    """A run's weights, Adam's state and unfinished episodes, from one iteration to the next."""

    def __init__(self, keys: Keys, weights: Mapping[str, Tensor]) -> None:
        """Start from ``weights``, named as in the model; without ``critic.*`` the trunk is one."""
        self.keys = keys
        self.weights = {n: w.detach().double().clone().requires_grad_() for n, w in weights.items()}
        self.first = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.second = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.num_adam_steps = self.iteration = 0
        self._running: dict[int, tuple[float, int]] = {}  # by environment: return and length so far
        self._last100: deque[float] = deque(maxlen=100)

    # The two networks

    def _features(self, trunk: str, x: Tensor) -> Tensor:
        trunk = trunk if f"{trunk}.layers.0.weight" in self.weights else "actor"
        activate = {"tanh": torch.tanh, "relu": torch.relu}[self.keys.activation]
        number = 0
        while f"{trunk}.layers.{number}.weight" in self.weights:
            x = activate(self._affine(f"{trunk}.layers.{number}", x))
            number += 1
        return x

    def _affine(self, layer: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{layer}.weight"] + self.weights[f"{layer}.bias"]

    def values(self, observations: Tensor) -> Tensor:
        """Return the critic's values."""
        return self._affine("value_head", self._features("critic", observations))[..., 0]

    def policy(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log probabilities of ``actions`` and the policy's entropies."""
        output = self._affine("policy_head", self._features("actor", observations))
        if "log_std" in self.weights:
            log_std = self.weights["log_std"].expand_as(output)
            z = (actions - output) / log_std.exp()
            log_prob = (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
            return log_prob, (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        log_p = output - output.logsumexp(-1, keepdim=True)
        return log_p.gather(-1, actions[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)

    # One iteration

    def iterate(self, rollout: Mapping[str, Tensor], orders: Tensor) -> dict[str, float]:
        """Train on a ``rollout`` of (T, N, …) in ``orders`` (E, R); return the metrics by name."""
        keys = self.keys
        advantages = self._advantages(rollout)
        columns = {"advantages": advantages, "targets": advantages + rollout["values"]}
        names = ("observations", "actions", "log_probs", "values")
        columns |= {name: rollout[name] for name in names}
        rows = {name: column.flatten(0, 1) for name, column in columns.items()}
        num_rows = len(rows["values"])
        spent = self.iteration / (keys.total_steps // num_rows)
        lr = keys.lr * (1 - spent if keys.lr_schedule == "linear" else 1)
        kept = 1 - spent if keys.epsilon_schedule == "linear" else 1
        low = math.inf if keys.epsilon is None else keys.epsilon * kept
        high = low if keys.epsilon_high is None else keys.epsilon_high * kept
        assert orders.shape == (keys.num_epochs, num_rows)
        metrics = self._update(rows, orders, lr, low, high)
        metrics |= self._after(rows, low, high) | self._episodes(rollout)
        metrics["charts/learning_rate"] = lr
        if keys.epsilon is not None:
            metrics["ppo/epsilon"] = low
        self.iteration += 1
        return metrics

    def _advantages(self, rollout: Mapping[str, Tensor]) -> Tensor:
        """Return A_t = delta_t + gamma lambda A_(t+1), within an episode, backwards in time."""
        keys, advantages = self.keys, torch.zeros_like(rollout["values"])
        names = ("rewards", "values", "next_values", "terminated", "truncated")
        for n in range(advantages.shape[1]):
            steps, later = list(zip(*(rollout[name][:, n].tolist() for name in names))), 0.0
            for t, (reward, value, after, is_over, is_cut_off) in reversed(list(enumerate(steps))):
                if is_over or (is_cut_off and not keys.bootstrap_truncated):
                    after = 0.0
                if is_over or is_cut_off:
                    later = 0.0
                later = reward + keys.gamma * after - value + keys.gamma * keys.gae_lambda * later
                advantages[t, n] = later
        return advantages

    def _update(
        self, rows: Mapping[str, Tensor], orders: Tensor, lr: float, low: float, high: float
    ) -> dict[str, float]:
        keys, taken = self.keys, []
        advantages = rows["advantages"]
        if keys.advantage_normalization == "rollout":
            advantages = _normalized(advantages)
        size = orders.shape[1] // keys.num_minibatches
        for index in (part for order in orders for part in order.split(size)):
            batch = {name: column[index] for name, column in rows.items()}
            batch["advantages"] = advantages[index]
            if keys.advantage_normalization == "minibatch":
                batch["advantages"] = _normalized(batch["advantages"])
            loss, numbers = self._loss(batch, low, high)
            names = [*numbers, *_NORMS[: 3 if keys.separate_grad_clip else 1]]
            if keys.target_kl is not None and numbers["approx_kl"] > 1.5 * keys.target_kl:
                break
            gradients = torch.autograd.grad(
                loss, list(self.weights.values()), allow_unused=True, materialize_grads=True
            )
            numbers |= self._step(dict(zip(self.weights, gradients)), lr)
            taken.append(numbers)
        # Without a single step there is nothing to average: 0, and ratios of 1.
        metrics = {name: sum(s[name] for s in taken) / max(1, len(taken)) for name in names}
        metrics["ratio_min"] = min((step["ratio_min"] for step in taken), default=1.0)
        metrics["ratio_max"] = max((step["ratio_max"] for step in taken), default=1.0)
        return {f"losses/{name}": value for name, value in metrics.items()} | {
            "ppo/gradient_steps": len(taken),
            "ppo/epochs_done": len(taken) / keys.num_minibatches,
        }

    def _loss(
        self, batch: Mapping[str, Tensor], low: float, high: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Return policy loss - c2 entropy + c1 value loss, and what is measured of them."""
        keys, advantages = self.keys, batch["advantages"]
        log_prob, entropies = self.policy(batch["observations"], batch["actions"])
        ratio = (log_prob - batch["log_probs"]).exp()
        objective = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
        if keys.dual_clip is not None:
            bounded = torch.maximum(objective, keys.dual_clip * advantages)
            objective = torch.where(advantages < 0, bounded, objective)
        values, old, targets = (
            self.values(batch["observations"]), batch["values"], batch["targets"]
        )  # fmt: skip
        errors = (values - targets) ** 2
        if (width := keys.value_epsilon) is not None:
            near = old + (values - old).clamp(-width, width)
            errors = torch.maximum(errors, (near - targets) ** 2)
        policy_loss, value_loss = -objective.mean(), 0.5 * errors.mean()
        loss = policy_loss - keys.entropy_coef * entropies.mean() + keys.value_coef * value_loss
        log_ratio, shares = ratio.detach().log(), _shares(ratio.detach(), advantages, low, high)
        return loss, {
            "policy_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "entropy": entropies.mean().item(),
            "approx_kl": (ratio.detach() - 1 - log_ratio).mean().item(),  # k3
            "old_approx_kl": -log_ratio.mean().item(),  # k1
            "ratio_min": ratio.min().item(),
            "ratio_max": ratio.max().item(),
            **dict(zip(_SHARES_IN_UPDATE, shares)),
        }

    def _step(self, gradients: dict[str, Tensor], lr: float) -> dict[str, float]:
        """Clip the gradients by their norm, take a step of Adam (algorithm 1); return the norms."""
        keys = self.keys
        actor = [n for n in gradients if n.startswith(("actor.", "policy_head.")) or n == "log_std"]
        critic = [name for name in gradients if name not in actor]
        groups = [actor, critic] if keys.separate_grad_clip else [actor + critic]
        norms = [sum(float((gradients[n] ** 2).sum()) for n in group) ** 0.5 for group in groups]
        self.num_adam_steps += 1
        for group, norm in zip(groups, norms):
            scale = 1.0
            if keys.max_grad_norm is not None and norm > keys.max_grad_norm:
                scale = keys.max_grad_norm / (norm + 1e-6)
            for name in group:
                gradient, first, second = gradients[name] * scale, self.first, self.second
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean = first[name] / (1 - 0.9**self.num_adam_steps)
                square = second[name] / (1 - 0.999**self.num_adam_steps)
                with torch.no_grad():
                    self.weights[name] -= lr * mean / (square.sqrt() + keys.adam_eps)
        each = norms if keys.separate_grad_clip else []
        return dict(zip(_NORMS, [math.hypot(*norms), *each]))

    @torch.no_grad()
    def _after(self, rows: Mapping[str, Tensor], low: float, high: float) -> dict[str, float]:
        """Return what is measured over the whole rollout after the update."""
        advantages = rows["advantages"]
        if self.keys.advantage_normalization != "none":
            advantages = _normalized(advantages)
        log_prob, entropies = self.policy(rows["observations"], rows["actions"])
        ratio = (log_prob - rows["log_probs"]).exp()
        ordered, last = ratio.sort().values.tolist(), len(ratio) - 1
        residuals, targets = (rows["targets"] - rows["values"]).tolist(), rows["targets"].tolist()
        edges = [10 ** (-2 + i / 16) for i in range(1, 64)]  # the inner ones of 64 bins
        counts = [0] * 64
        for number in ordered:
            counts[bisect_right(edges, number)] += 1
        self.ratio_counts = counts
        entropy = entropies.mean().item()
        metrics = {
            **dict(zip(_SHARES_AFTER, _shares(ratio, advantages, low, high))),
            "ppo/outside_0p2_frac": sum(r < 0.8 or r > 1.2 for r in ordered) / len(ordered),
            "ppo/ratio_min": ordered[0],
            "ppo/ratio_p01": ordered[round(0.01 * last)],
            "ppo/ratio_p99": ordered[round(0.99 * last)],
            "ppo/ratio_max": ordered[-1],
            "ppo/kl_k1": fmean(-math.log(r) for r in ordered),
            "ppo/kl_k2": fmean(math.log(r) ** 2 / 2 for r in ordered),
            "ppo/kl_k3": fmean(r - 1 - math.log(r) for r in ordered),
            "ppo/ess_frac": sum(ordered) ** 2 / sum(r * r for r in ordered) / len(ordered),
            "ppo/entropy": entropy,
            "ppo/advantages_std": rows["advantages"].std().item(),  # unbiased
            "losses/explained_variance": 1 - (pstdev(residuals) / pstdev(targets)) ** 2,
        }
        if "log_std" not in self.weights:
            num_actions = self.weights["policy_head.bias"].numel()
            metrics["ppo/entropy_frac"] = entropy / math.log(num_actions)
        return metrics

    def _episodes(self, rollout: Mapping[str, Tensor]) -> dict[str, float]:
        """Add up rewards of unfinished episodes; return statistics of those that ended."""
        returns, lengths = [], []
        ended = rollout["terminated"] | rollout["truncated"]
        for t, rewards in enumerate(rollout["env_rewards"].tolist()):
            for n, reward in enumerate(rewards):
                total, length = self._running.pop(n, (0.0, 0))
                total, length = total + reward, length + 1
                if ended[t, n]:
                    returns.append(total)
                    lengths.append(length)
                else:
                    self._running[n] = total, length
        self._last100.extend(returns)
        if not returns:
            return {"charts/episodes": 0.0}
        return {
            "charts/episodes": len(returns),
            "charts/episodic_return": fmean(returns),
            "charts/episodic_return_std": pstdev(returns),
            "charts/episodic_return_min": min(returns),
            "charts/episodic_return_max": max(returns),
            "charts/episodic_length": fmean(lengths),
            "charts/episodic_return_last100": fmean(self._last100),
        }


def _normalized(advantages: Tensor) -> Tensor:
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # unbiased


_NORMS = ("grad_norm", "grad_norm_actor", "grad_norm_critic")
_SHARES_AFTER = (
    "ppo/clip_frac", "ppo/clip_above_frac", "ppo/clip_below_frac",
    "ppo/cut_above_frac", "ppo/cut_below_frac", "ppo/pass_frac",
)  # fmt: skip
_SHARES_IN_UPDATE = (
    "clipfrac", "clipfrac_above", "clipfrac_below", "cutfrac_above", "cutfrac_below", "passfrac",
)  # fmt: skip


def _shares(ratio: Tensor, advantages: Tensor, low: float, high: float) -> list[float]:
    """Return the shares of rows outside [1 - low, 1 + high], by side and by what becomes of them.

    Beyond the clip a gradient is cut where the objective would gain by going further.
    """
    pairs: Sequence[tuple[float, float]] = list(zip(ratio.tolist(), advantages.tolist()))
    above = [a for r, a in pairs if r > 1 + high]
    below = [a for r, a in pairs if r < 1 - low]
    cut_above, cut_below = sum(a > 0 for a in above), sum(a < 0 for a in below)
    num_cut = cut_above + cut_below
    num_outside = len(above) + len(below)
    counts = (num_outside, len(above), len(below), cut_above, cut_below, num_outside - num_cut)
    return [count / len(pairs) for count in counts]
