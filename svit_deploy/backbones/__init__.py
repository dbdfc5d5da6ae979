"""Backbones: how an image becomes tokens, what a block is, and what stands between blocks.

A backbone knows no method: it is given one, and asks it block by block which tokens are computed
(`tokens.GraphTokens` in graphs, `reference.ReferenceTokens` in the plain PyTorch forward).
"""
