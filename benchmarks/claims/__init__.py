"""The claims that are made of PPO, measured: docs/ppo.md shows what was found."""
