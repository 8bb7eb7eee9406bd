"""Rules for the range of a linear's input that need more than a histogram, one file each; weights cannot have them.

Every rule has NEEDS (names of observers), Options, and from_stats(stats, scheme, options, weights). The rules of
qparams/ranges serve inputs as well, by their from_histogram; qparams/choose_input.py asks either kind.
"""

ALSO = "qparams.ranges"
"""Where find.py looks too."""
