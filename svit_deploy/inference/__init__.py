"""Runs a bundle over many images: what is opened, fed, and seen of each image."""
