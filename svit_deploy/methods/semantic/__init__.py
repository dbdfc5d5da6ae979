"""Blocks of semantic tokens: what STViT and STViT-R, on any backbone, have in common."""
