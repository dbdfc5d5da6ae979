"""Runs a bundle on pictures and draws what comes out."""
