"""A bundle for NVIDIA's Polygraphy: what it runs, what should come out, and what to type."""
