"""What defines a model, as data: configuration, sizes, shapes of weights, input profiles."""
