"""From a checkpoint to a bundle, or from a bundle to an engine of its graph."""
