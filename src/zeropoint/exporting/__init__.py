"""One quantized model, every engine: the same integers in the layout of another program, never rounded again.

    folder --Weights--> plan: every tensor's type in the target, or the sentence that says why not --> metadata
           --PackedWeight, one tensor at a time--> blocks in a partial file --> read back, value by value --> renamed

A file here is a target. Its name is what `--format` is given, and it provides

    STORES: str                       what it can hold, in one line
    def plan(weights) -> Planned      refuse what cannot be held, before anything is written; no weight is read
    def write(planned, output, *, overwrite, report) -> Written

`plan` raises SchemeError with the name of a tensor and what would fit. A scale or a zero point that the target cannot
hold exactly is found while it is written: SchemeError again, and nothing is under the output's name.

Nothing here imports torch.
"""

NOT_CAPABILITIES = ("run", "result")
