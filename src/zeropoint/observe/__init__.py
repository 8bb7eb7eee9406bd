"""Texts to batches, batches through the model, and what is remembered of the activations on the way.

Each file that is not named below is a statistic with a class Observer: update(x), merge(other), result(). Its memory
does not grow with what it sees, and neither the split into batches nor the order of merging changes the result (the
second moment: beyond the rounding of float32). A result is the end of its observer, whose memory it may be.
"""

NOT_CAPABILITIES = ("activations", "data", "glance", "massive", "shadow", "walk")
