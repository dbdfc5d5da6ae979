"""Token-reduction methods: which tokens each block computes. `families` says on which backbones."""
