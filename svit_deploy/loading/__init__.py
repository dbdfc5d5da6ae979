"""From a checkpoint to a model: its configuration and its weights under canonical names."""
