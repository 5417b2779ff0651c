"""Token reduction as pure functions on tensors."""
