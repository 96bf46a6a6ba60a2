"""What a study is: its search space, objectives, sampler and pruner."""
