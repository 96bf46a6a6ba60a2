"""Networks: they map observations to a policy and a value."""

from ppo_lab.networks.actor_critic import ActorCritic, Evaluation, PolicyAndValues
from ppo_lab.networks.base import NetworkConfig
from ppo_lab.networks.distributions import Distribution, distribution_for
from ppo_lab.networks.hf import HfConfig
from ppo_lab.networks.layers import Initializer
from ppo_lab.networks.mlp import MlpConfig
from ppo_lab.networks.recurrent import RecurrentConfig
from ppo_lab.networks.transformer import TransformerConfig

__all__ = [
    "NETWORKS", "ActorCritic", "Distribution", "Evaluation", "HfConfig", "Initializer",
    "MlpConfig", "NetworkConfig", "PolicyAndValues", "RecurrentConfig", "TransformerConfig",
    "distribution_for"]  # fmt: skip

# Config classes by name. A new kind of network is one line here, one module and one YAML.
NETWORKS: dict[str, type[NetworkConfig]] = {
    "hf": HfConfig, "mlp": MlpConfig, "recurrent": RecurrentConfig,
    "transformer": TransformerConfig,
}  # fmt: skip
