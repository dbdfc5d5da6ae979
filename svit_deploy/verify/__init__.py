"""Parity of an exported model with its reference, gate by gate, whatever the task.

Three kinds of runs, all of the exported graph:

1. every stage by itself, on the reference's values and decisions: no error hides behind another,
   and a wrong block is told from a wrong gate (`stages`);
2. as shipped: which decisions differ and by what margin, then what comes out (`parity`);
3. behaviour: alone and in a batch, repeated, all tokens kept, none kept (`behaviour`).
"""
