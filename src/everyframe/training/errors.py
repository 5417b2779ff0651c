"""What training says when it cannot go on."""


class TrainingError(ValueError):
    """Training cannot start, or cannot go on, as asked. The message says what to do about it."""
