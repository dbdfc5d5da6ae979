"""A bundle as others deploy it: a Triton model repository, KServe's manifest, a container."""
