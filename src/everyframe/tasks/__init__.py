"""What features are good for: tasks take `VideoFeatures` and query embeddings, never pixels or models."""
