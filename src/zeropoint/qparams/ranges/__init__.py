"""Range rules, one file each: which part [low, high] of the values the integers shall cover.

Every rule has NEEDS (names of observers), Options, from_values (the groups of a weight) and from_histogram
(activations, seen in batches). A rule keeps low <= 0 <= high, commutes with scaling by powers of two, and stays inside
the range that was seen. Only where a symmetric grid lacks its highest step (max = 7.5 S, and 7 is the last code) may
it go up to the range whose last code is the maximum: wider by half a step.
"""
