"""How well the encoders do, task by task: `synthetic` is ResidualViT's ablation at the scale of one CPU core."""
