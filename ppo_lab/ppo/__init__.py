"""PPO: rollouts, advantages, losses, the optimizer and the update."""
