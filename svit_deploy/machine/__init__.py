"""What is on this machine: packages, versions, processor."""
