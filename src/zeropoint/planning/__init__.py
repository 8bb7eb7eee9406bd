"""What a quantization will take and give, before it starts: from the headers of the model and the recipe.

schemes   which linears and tables become integers, and why the others stay floats; refuses what cannot be written
output    the tensors of the output, to the byte
memory    the most memory of each part of the work, and what --max-memory makes of it
work      operations of each stage of the work, and the seconds that this machine needs for them
rates     what this machine reaches, measured in some ten seconds
plan      all of it in one Plan

Only `work` and `rates` import torch.
"""
