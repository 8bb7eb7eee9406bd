"""Scale and zero point of every group of a tensor, from its values or from a histogram: pure functions.

grouping     which values share a scale; the only owner of shapes and of what a scheme may say
ranges/      one file per rule that picks [low, high]
from_range   [low, high] -> scale and zero point; the only owner of zero, tiny, huge and non-finite ranges
affine       values <-> integers, given scale and zero point
choose       the four above in one call, for a weight
inputs       activations <-> integers, static or a scale for each token
input_ranges/, choose_input, input_error
             static ranges of inputs: rules of their own, the choice of one, and what it costs the output
"""
