"""Stage 8, MEASURE: what a written model lost against its reference, with a confidence interval, and what it weighs.

divergence   logits of both models -> one score per token
perplexity   scores -> means over windows, with their 95 % intervals
verdict      the interval of the perplexity ratio against a margin -> one word and one sentence
layers       how far one weight is from its original
size         where the bytes of a checkpoint are, from its headers
speed        tokens per second, memory, and what share of the bandwidth decoding reaches; each model in a process of its
             own (speed_process)
results      the structs that all of it ends in: results.json, --json, and what report/ shows

Importing this package, `results`, `size` or `speed` imports no torch.
"""

from __future__ import annotations
