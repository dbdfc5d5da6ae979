"""How good an exported model is on labelled images, and how many tokens it computes."""
