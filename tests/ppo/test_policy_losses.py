"""GSPO and CISPO, by hand and against plain versions of the published formulas."""

import math

import numpy as np
import pytest
import torch

from ppo_lab.ppo.losses import ClipRange, cispo, clipped_surrogate, gspo, sequence_log_ratio
from ppo_lab.ppo.row_weights import Aggregation, live_weights, row_weights, scale_weights

LOW, HIGH = 0.2, 0.28
CLIP = ClipRange(torch.tensor([LOW]), torch.tensor([HIGH]))


def log_of(*ratios):
    return torch.tensor([ratios]).log().requires_grad_()


def loss_and_gradient(loss, log_ratio, advantages, **options):
    result = loss(log_ratio, torch.tensor([advantages]), CLIP, **options)
    result.sum().backward()
    return result.item(), log_ratio.grad[0].tolist()


def test_a_sequences_ratio_is_the_geometric_mean_of_its_live_ratios():
    log_ratio = torch.tensor([[2.0, 8.0, 3.0, 5.0, 7.0, 9.0]]).log()
    live = torch.tensor([[True, True, False, True, False, False]])
    found = sequence_log_ratio(log_ratio, live_weights(live), num_steps=3).exp()
    assert found[0].tolist() == pytest.approx([4.0] * 3 + [5.0] * 3)  # sqrt(2 * 8); 5 alone
    all_live = sequence_log_ratio(log_ratio, None, num_steps=3).exp()
    assert all_live[0].tolist() == pytest.approx([48.0 ** (1 / 3)] * 3 + [315.0 ** (1 / 3)] * 3)


# Sequences of two steps. The first has ratios 1.21 and 1, s = 1.1, the second 1.69 and 1, s = 1.3,
# which is clipped to 1.28 although one of its steps is inside and the other far outside.
RATIOS = 1.21, 1.0, 1.69, 1.0


@pytest.mark.parametrize(
    ("advantages", "loss", "gradient"),
    [
        # -(1.1 * 2 + min(1.3, 1.28) * 1) / 2; the second is cut. d / d log r = -s A / 4 a step.
        ((2.0, 2.0, 1.0, 1.0), -1.74, (-0.55, -0.55, 0.0, 0.0)),
        # A bad sequence above is pulled back, all its steps alike: -(1.1 * -2 - 1.3) / 2.
        ((-2.0, -2.0, -1.0, -1.0), 1.75, (0.55, 0.55, 0.325, 0.325)),
    ],
)
def test_gspo_clips_a_whole_sequence_and_its_gradient_is_the_same_in_every_step(
    advantages, loss, gradient
):
    found, found_gradient = loss_and_gradient(gspo, log_of(*RATIOS), advantages, num_steps=2)
    assert found == pytest.approx(loss)
    assert found_gradient == pytest.approx(gradient)


def test_gspos_dual_clip_bounds_a_bad_sequence():
    # s = 5, A = -2, c = 3: max(min(-10, -2.56), -6) = -6, and the gradient is cut.
    found = loss_and_gradient(
        gspo, log_of(5.0, 5.0), (-2.0, -2.0), num_steps=2, dual_clip=torch.tensor([3.0])
    )
    assert found == (pytest.approx(6.0), [0.0, 0.0])


def test_gspo_with_sequences_of_one_step_is_ppo():
    for advantages in ((1.0, -1.0, 2.0, -0.5), (-3.0, 1.0, -1.0, 1.0)):
        mine = loss_and_gradient(gspo, log_of(1.5, 1.5, 0.5, 0.5), advantages, num_steps=1)
        reference = loss_and_gradient(clipped_surrogate, log_of(1.5, 1.5, 0.5, 0.5), advantages)
        assert mine[0] == pytest.approx(reference[0])
        assert mine[1] == pytest.approx(reference[1])


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.5, 2.0, -2.56),  # above, good: counts as 1.28, but is not cut
        (1.5, -2.0, 2.56),
        (0.5, 2.0, -1.6),  # below: counts as 0.8
        (0.5, -2.0, 1.6),
        (1.1, 2.0, -2.2),  # inside
    ],
)
def test_cispo_never_cuts_a_gradient(ratio, advantage, gradient):
    loss, (found,) = loss_and_gradient(cispo, log_of(ratio), (advantage,))
    assert found == pytest.approx(gradient)
    assert loss == pytest.approx(gradient * math.log(ratio))  # -clip(r) A log(r)


def test_cispo_without_a_clip_is_the_gradient_of_the_importance_sampled_objective():
    wide = ClipRange(torch.tensor([math.inf]), torch.tensor([math.inf]))
    log_ratio = log_of(3.0, 0.1)
    cispo(log_ratio, torch.tensor([[2.0, -1.0]]), wide).sum().backward()
    assert log_ratio.grad[0].tolist() == pytest.approx([-3.0, 0.05])  # -r A / 2


def test_cispos_dual_clip_limits_the_weight_of_a_bad_action_alone():
    wide = ClipRange(torch.tensor([math.inf]), torch.tensor([math.inf]))
    log_ratio = log_of(5.0, 5.0)
    advantages, bound = torch.tensor([[-2.0, 0.5]]), torch.tensor([3.0])
    cispo(log_ratio, advantages, wide, bound).sum().backward()
    assert log_ratio.grad[0].tolist() == pytest.approx([3.0, -1.25])  # -min(5, 3) A / 2; -5 A / 2


class Ragged:
    """Random sequences of 1 to T steps in plain arrays, and as the rows of one lane."""

    num_steps = 7

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        self.lengths = random.integers(1, self.num_steps + 1, 12)
        self.new = random.normal(-1.0, 0.4, (12, self.num_steps))  # log-probabilities
        self.old = random.normal(-1.0, 0.4, (12, self.num_steps))
        self.advantages = random.normal(size=12)

    def rows(self, aggregation):
        log_ratio = torch.from_numpy(self.new - self.old).view(1, -1).requires_grad_()
        advantages = torch.from_numpy(np.repeat(self.advantages, self.num_steps)).view(1, -1)
        live = torch.from_numpy(np.arange(self.num_steps) < self.lengths[:, None]).view(1, -1)
        weights = row_weights(live, self.num_steps, aggregation)
        return log_ratio, advantages, scale_weights(weights, aggregation)

    def sequences(self):
        """Yield new and old log-probabilities of the live steps, and the advantage."""
        for new, old, length, advantage in zip(
            self.new, self.old, self.lengths, self.advantages, strict=True
        ):
            yield new[:length], old[:length], advantage


def ppo_terms(ratio, advantage):
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - LOW, 1 + HIGH) * advantage)


@pytest.mark.parametrize("seed", range(4))
def test_dapos_token_mean_is_the_published_formula(seed):
    ragged = Ragged(seed)
    total = tokens = 0
    for new, old, advantage in ragged.sequences():
        total += ppo_terms(np.exp(new - old), advantage).sum()
        tokens += len(new)
    log_ratio, advantages, weights = ragged.rows(Aggregation.token_mean)
    found = clipped_surrogate(log_ratio, advantages, CLIP, weights=weights)
    assert found.item() == pytest.approx(-total / tokens, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_grpos_objective_is_the_published_formula(seed):
    ragged = Ragged(seed)
    terms = [ppo_terms(np.exp(new - old), a).mean() for new, old, a in ragged.sequences()]
    log_ratio, advantages, weights = ragged.rows(Aggregation.sequence_mean)
    found = clipped_surrogate(log_ratio, advantages, CLIP, weights=weights)
    assert found.item() == pytest.approx(-np.mean(terms), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_gspo_is_the_published_formula_and_so_is_its_gradient(seed):
    ragged = Ragged(seed)

    def objective(shift=0.0, at=(0, 0)):
        """Return 1/G sum of min(s A, clip(s) A), one log-probability shifted."""
        terms = []
        for number, (new, old, advantage) in enumerate(ragged.sequences()):
            new = new + shift * ((number == at[0]) & (np.arange(len(new)) == at[1]))
            likelihood = np.exp(new.sum()) / np.exp(old.sum())
            terms.append(ppo_terms(likelihood ** (1.0 / len(new)), advantage))
        return np.mean(terms)

    log_ratio, advantages, weights = ragged.rows(Aggregation.sequence_mean)
    found = gspo(log_ratio, advantages, CLIP, weights=weights, num_steps=ragged.num_steps)
    assert found.item() == pytest.approx(-objective(), rel=1e-6)
    found.sum().backward()
    for row, gradient in enumerate(log_ratio.grad[0].tolist()):
        at = divmod(row, ragged.num_steps)
        slope = (objective(1e-6, at) - objective(-1e-6, at)) / 2e-6
        assert gradient == pytest.approx(-slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_cispos_gradient_is_that_of_the_published_formula(seed):
    ragged = Ragged(seed)
    log_ratio, advantages, weights = ragged.rows(Aggregation.token_mean)
    cispo(log_ratio, advantages, CLIP, weights=weights).sum().backward()
    found = log_ratio.grad.view(-1, ragged.num_steps).numpy()
    for number, (new, old, advantage) in enumerate(ragged.sequences()):
        # J = 1 / sum |o| * sum of sg(clip(r)) A log pi, so dJ / d log pi = clip(r) A / sum |o|.
        coefficients = np.clip(np.exp(new - old), 1 - LOW, 1 + HIGH) * advantage
        expected = np.zeros(ragged.num_steps)
        expected[: len(new)] = -coefficients / ragged.lengths.sum()
        np.testing.assert_allclose(found[number], expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [gspo, cispo])
def test_a_lane_has_its_own_loss_whatever_the_other_holds(loss):
    options = {"num_steps": 2} if loss is gspo else {}

    def first_lane(other):
        log_ratio = torch.tensor([[0.3, -0.1, 0.5, 0.0], [other] * 4], requires_grad=True)
        advantages = torch.tensor([[1.0, 1.0, -2.0, -2.0], [other] * 4])
        epsilon = torch.tensor([0.2, math.inf])
        result = loss(log_ratio, advantages, ClipRange(epsilon, epsilon), epsilon + 2, **options)
        result.sum().backward()
        return result[0].detach(), log_ratio.grad[0]

    for other in (math.inf, math.nan, 3.0):
        for mine, reference in zip(first_lane(other), first_lane(0.0), strict=True):
            assert torch.equal(mine, reference)
