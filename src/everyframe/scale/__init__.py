"""Past one machine: the same features, from a cluster, each video exactly once."""
