"""Networks: initialisation and outputs; action distributions against torch's own."""

import dataclasses
import math

import pytest
import torch
from omegaconf import OmegaConf

from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.networks import (
    NETWORKS,
    ActorCritic,
    Initializer,
    MlpConfig,
    distribution_for,
)
from ppo_lab.networks.base import Initialization
from ppo_lab.networks.mlp import Activation
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR
from ppo_lab.utils.rng import Stream, lane_keys
from tests.helpers.trainers import CPU, config, numbers_of, record_rows

YAMLS = sorted(path.stem for path in (CONF_DIR / "network").glob("*.yaml"))
TOKENS = EnvSpec(1, DiscreteActions(41), num_tokens=41)
DISCRETE = EnvSpec(4, DiscreteActions(3))
CONTINUOUS = EnvSpec(4, ContinuousActions(low=(-1.0, -2.0), high=(1.0, 2.0)))
BOTH = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
TRUNKS = pytest.mark.parametrize("shares_trunk", [False, True], ids=["separate", "shared"])


def initializer(*seeds, device=CPU, dtype=torch.float32):
    return Initializer(torch.tensor(seeds or (1,)), torch.device(device), dtype)


def build(spec, network=None, *, seeds=(1, 2), shares_trunk=False, **options):
    network = MlpConfig(hidden=[64, 32]) if network is None else network
    return ActorCritic(network, spec, initializer(*seeds, **options), shares_trunk=shares_trunk)


def layers_and_gains(model):
    """Return each linear layer with the gain it should have started with."""
    for trunk in (model.actor, model.critic):
        for layer in trunk.layers:
            yield layer, math.sqrt(2.0)
    yield model.policy_head, 0.01
    yield model.value_head, 1.0


@BOTH
@TRUNKS
def test_weights_start_orthogonal_with_their_gains_and_biases_at_zero(spec, shares_trunk):
    model = build(spec, MlpConfig(hidden=[64, 64, 32]), shares_trunk=shares_trunk)
    for layer, gain in layers_and_gains(model):
        for weight in layer.weight.detach():  # (I, O): the short side's vectors are orthonormal
            product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
            expected = gain**2 * torch.eye(len(product))
            assert (product - expected).abs().max() < 1e-5 * gain
        assert not layer.bias.any()
    if spec is CONTINUOUS:
        assert not model.log_std.any()  # a deviation of 1
    else:
        assert model.log_std is None


def test_orthogonal_columns_have_no_preferred_sign():
    # QR alone returns a first column of one sign; multiplied by R's signs it is uniform.
    weight = Initializer(torch.arange(400), CPU, torch.float32).orthogonal(3, 3, 1.0)
    share = (weight[:, 0, 0] > 0).double().mean()
    assert abs(share - 0.5) < 4 * 0.025  # sqrt(0.25 / 400)
    assert abs((torch.linalg.det(weight) > 0).double().mean() - 0.5) < 4 * 0.025


@TRUNKS
@pytest.mark.parametrize("num_actions", [2, 3, 18])
def test_the_first_policy_is_within_one_percent_of_uniform_in_entropy(num_actions, shares_trunk):
    model = build(EnvSpec(4, DiscreteActions(num_actions)), shares_trunk=shares_trunk)
    observations = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(0))
    entropy = model.distribution.entropy(model.policy(observations))
    assert (entropy / math.log(num_actions) - 1.0).abs().max() < 0.01
    assert model.distribution.max_entropy == pytest.approx(math.log(num_actions))


@BOTH
def test_default_initialisation_is_torchs_uniform_in_one_over_root_inputs(spec):
    network = MlpConfig(hidden=[256, 100], init=Initialization.default)
    model = build(spec, network)
    for layer, _ in layers_and_gains(model):
        weight = layer.weight.detach()
        bound = 1.0 / math.sqrt(weight.shape[1])
        assert weight.abs().max() <= bound
        if weight[0].numel() > 1000:
            assert weight.abs().max() > 0.99 * bound
            assert weight.std() == pytest.approx(bound / math.sqrt(3.0), rel=0.05)


def test_a_lane_starts_the_same_alone_and_in_a_stack_and_seeds_differ():
    stack = build(DISCRETE, seeds=(5, 6, 5))
    alone = build(DISCRETE, seeds=(6,))
    for mine, theirs in zip(stack.parameters(), alone.parameters()):
        torch.testing.assert_close(mine[1:2], theirs, rtol=0.0, atol=1e-6)
        assert torch.equal(mine[0], mine[2])
        if mine.any():
            assert not torch.equal(mine[0], mine[1])


def test_every_layer_starts_from_numbers_of_its_own():
    model = build(DISCRETE, MlpConfig(hidden=[4, 4, 4]))
    weights = [layer.weight[0] for layer, _ in layers_and_gains(model)][:6]  # all 4 x 4
    assert len(torch.stack(weights).unique(dim=0)) == 6


@pytest.mark.parametrize("activation", Activation)
def test_an_mlp_is_linear_layers_each_followed_by_its_activation(activation):
    trunk = MlpConfig(hidden=[8, 5], activation=activation).build_trunk(
        EnvSpec(4, DiscreteActions(2)), initializer()
    )
    x = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0))
    function = {Activation.tanh: torch.tanh, Activation.relu: torch.relu}[activation]
    expected = x[0]
    for layer in trunk.layers:
        expected = function(expected @ layer.weight[0] + layer.bias[0])
    torch.testing.assert_close(trunk(x)[0], expected)
    assert trunk.num_features == 5


@BOTH
@TRUNKS
def test_both_answers_together_are_each_alone(spec, shares_trunk):
    model = build(spec, shares_trunk=shares_trunk)
    observations = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    policy_parameters, values = model(observations)
    assert values.shape == (2, 7)
    assert policy_parameters.shape == (2, 7, model.distribution.num_parameters)
    torch.testing.assert_close(policy_parameters, model.policy(observations))
    torch.testing.assert_close(values, model.values(observations))


@BOTH
@TRUNKS
def test_groups_hold_every_parameter_once(spec, shares_trunk):
    model = build(spec, shares_trunk=shares_trunk)
    grouped = [parameter for group in model.groups().values() for parameter in group]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert ("trunk" in model.groups()) is shares_trunk


def network_of(name):
    """Return the network of a YAML file, which need not fit the default environment."""
    options = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "network" / f"{name}.yaml"))
    kind = options.pop("defaults")[0].removeprefix("schema/").removesuffix("@_here_")
    schema = OmegaConf.structured(NETWORKS[kind])
    return OmegaConf.to_object(OmegaConf.merge(schema, options))


def takes(network, spec):
    try:
        network.check_env(spec)
    except ConfigError:
        return False
    return True


SPECS = (*(EnvSpec(size, DiscreteActions(2)) for size in (3, 17)), TOKENS)
NETWORKS_AND_SPECS = [
    pytest.param(network, spec, id=f"{name}-{spec.observation_size}")
    for name, network in ((name, network_of(name)) for name in YAMLS if name != "hf")
    for spec in SPECS
    if takes(network, spec)
]


def test_every_kind_of_network_has_a_yaml():
    kinds = {type(network_of(name)) for name in YAMLS}
    assert kinds == set(NETWORKS.values())


# network=hf needs a folder: tests/networks/test_hf.py.
@pytest.mark.parametrize("name", [name for name in YAMLS if name != "hf"])
def test_every_yaml_is_a_network_for_numbers_or_for_tokens(name):
    network = network_of(name)
    network.check()
    assert [takes(network, spec) for spec in SPECS] in ([True, True, False], [False, False, True])


@pytest.mark.parametrize(("network", "spec"), NETWORKS_AND_SPECS)
def test_every_yamls_parameter_count_is_what_it_says_without_memory_for_it(network, spec):
    # Shapes only: huge fits too.
    model = build(spec, network, seeds=(1,), device="meta", shares_trunk=True)
    counted = sum(p.numel() for p in model.actor.parameters())
    assert counted == network.num_trunk_parameters(spec)
    assert all(p.is_meta for p in model.parameters())


def test_tiny_and_small_have_the_parameters_counted_by_hand():
    # CartPole's 4 observations: 5 * 64 + 65 * 64 = 4480; 5 * 256 + 257 * 256 = 67072.
    assert (
        config("network=tiny").network.num_trunk_parameters(EnvSpec(4, DiscreteActions(2))) == 4480
    )
    assert (
        config("network=small").network.num_trunk_parameters(EnvSpec(4, DiscreteActions(2)))
        == 67072
    )


@pytest.mark.parametrize("hidden", [[], [0], [64, -1]])
def test_a_network_without_width_is_refused(hidden):
    with pytest.raises(ConfigError, match=r"network\.hidden"):
        dataclasses.replace(config(), network=MlpConfig(hidden=hidden))


@pytest.mark.parametrize("strategy", ["co_resident", "shared_trunk"])
@pytest.mark.parametrize("env", [(), ("env=pendulum",)], ids=["discrete", "continuous"])
def test_bfloat16_answers_in_float32_and_close_to_it(env, strategy):
    overrides = (*env, f"memory={strategy}", "num_steps=64", "num_minibatches=4", "num_epochs=5")
    exact = Trainer([config(*overrides)])
    rounded = Trainer([config(*overrides, "dtype=bfloat16")])
    rows = record_rows(exact)
    pairs = zip(rounded.model(rows.observations), exact.model(rows.observations))
    for found, expected in pairs:
        assert found.dtype is torch.float32
        scale = expected.abs().max()
        assert 0.0 < (found - expected).abs().max() < 0.03 * scale  # 8 bits: 0.4 % a product
    policy = rounded.model.policy(rows.observations)
    assert policy.dtype is torch.float32
    assert rounded.model.values(rows.observations).dtype is torch.float32
    assert all(p.dtype is torch.float32 for p in rounded.model.parameters())
    diagnostics = rounded.update(record_rows(rounded))
    assert all(value.isfinite().all() for value in numbers_of(diagnostics))
    assert all(p.isfinite().all() for p in rounded.model.parameters())


def test_float64_is_float64_throughout():
    trainer = Trainer([config("dtype=float64", "num_epochs=1")])
    rows = record_rows(trainer)
    for name, tensor in rows._asdict().items():
        if tensor is None:
            continue
        assert tensor.dtype is (torch.int64 if name == "actions" else torch.float64), name
    assert all(p.dtype is torch.float64 for p in trainer.model.parameters())


# Action distributions against torch.distributions.

CATEGORICAL = distribution_for(DiscreteActions(5))
GAUSSIAN = distribution_for(ContinuousActions(low=(-1.0,) * 3, high=(1.0,) * 3))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def keys(*seeds):
    return lane_keys(torch.tensor(seeds), Stream.ACTION)


def test_a_categoricals_log_probabilities_and_entropies_are_torchs():
    logits = 3.0 * normal(2, 7, 5)
    reference = torch.distributions.Categorical(logits=logits)
    for action in range(5):
        actions = torch.full((2, 7), action)
        torch.testing.assert_close(
            CATEGORICAL.log_prob(logits, actions), reference.log_prob(actions)
        )
    torch.testing.assert_close(CATEGORICAL.entropy(logits), reference.entropy())
    assert torch.equal(CATEGORICAL.mode(logits), reference.mode)


def test_a_categorical_that_is_certain_has_no_entropy_and_no_nan():
    logits = torch.tensor([[1e4, 0.0, 0.0, 0.0, 0.0]])
    assert CATEGORICAL.entropy(logits).tolist() == [0.0]
    assert CATEGORICAL.log_prob(logits, torch.tensor([0])).tolist() == [0.0]


def test_a_gaussians_log_densities_and_entropies_are_torchs():
    parameters = normal(2, 7, 6)
    mean, log_std = parameters.chunk(2, -1)
    reference = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    actions = normal(2, 7, 3).flip(1)
    torch.testing.assert_close(GAUSSIAN.log_prob(parameters, actions), reference.log_prob(actions))
    torch.testing.assert_close(GAUSSIAN.entropy(parameters), reference.entropy())
    assert torch.equal(GAUSSIAN.mode(parameters), mean)
    assert GAUSSIAN.max_entropy is None


@pytest.mark.parametrize(
    ("distribution", "actions"),
    [(CATEGORICAL, torch.arange(14).view(2, 7) % 5), (GAUSSIAN, normal(2, 7, 3))],
    ids=["categorical", "gaussian"],
)
def test_log_probability_and_entropy_together_are_each_alone(distribution, actions):
    parameters = normal(2, 7, distribution.num_parameters)
    log_prob, entropy = distribution.log_prob_and_entropy(parameters, actions)
    assert torch.equal(log_prob, distribution.log_prob(parameters, actions))
    assert torch.equal(entropy, distribution.entropy(parameters))


def test_a_categorical_is_sampled_as_often_as_it_says():
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.09, 0.01])
    noise = CATEGORICAL.noise(keys(1, 2), 100_000, torch.float32)
    assert noise.shape == (2, 100_000, 5)
    actions = CATEGORICAL.sample(probabilities.log(), noise)
    assert actions.dtype is torch.int64
    for lane in actions:
        shares = lane.bincount(minlength=5) / 100_000
        errors = (probabilities * (1 - probabilities) / 100_000).sqrt()  # at most 0.0016
        assert ((shares - probabilities).abs() < 4 * errors).all()


def test_a_gaussian_is_sampled_with_its_mean_and_deviation():
    parameters = torch.tensor([1.0, -2.0, 0.0, math.log(0.5), 0.0, math.log(3.0)])
    noise = GAUSSIAN.noise(keys(1), 100_000, torch.float32)
    assert noise.shape == (1, 100_000, 3)
    actions = GAUSSIAN.sample(parameters, noise)[0]
    std = torch.tensor([0.5, 1.0, 3.0])
    # Standard errors: of a mean std / 316, of a deviation std / 447.
    assert ((actions.mean(0) - parameters[:3]).abs() < 4 * std / 316).all()
    assert ((actions.std(0) - std).abs() < 4 * std / 447).all()
    assert torch.corrcoef(actions.T).fill_diagonal_(0.0).abs().max() < 4 / 316


@pytest.mark.parametrize("distribution", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_a_lanes_noise_is_its_own(distribution):
    stacked = distribution.noise(keys(1, 2), 10, torch.float32)
    assert torch.equal(stacked[1:], distribution.noise(keys(2), 10, torch.float32))
    assert not torch.equal(stacked[0], stacked[1])
    assert distribution.noise(keys(1), 10, torch.float64).dtype is torch.float64
