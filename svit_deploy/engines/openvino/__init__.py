"""OpenVINO: exported graphs on CPUs, GPUs and NPUs of Intel, and on ARM's CPUs."""
