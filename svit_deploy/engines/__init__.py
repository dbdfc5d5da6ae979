"""Runtimes behind one contract (`base.Engine`); each imports its library when it is used."""
