"""Stage 7, RUN: the ops that execute a model, the weights they are given, the cache, the sampler, generation."""
