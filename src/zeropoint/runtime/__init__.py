"""Stage 7, RUN: a checkpoint speaks.

    weights         reads a checkpoint block by block, as torch tensors or packed
    runner          what runs a model: tokens in, logits out; a session with a cache
    torch_runner    the one on torch, with ops_torch and cache
    sampler         logits -> the next token
    decode          token after token, and the text of them
    generate        load(path).generate(prompt)
    conversation    turns that keep their session

Only torch_runner, ops_torch and cache import torch.
"""
