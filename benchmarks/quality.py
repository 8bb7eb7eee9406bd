"""What each recipe for weights costs and what it loses, one row each; the rows are described in rows.py.

python benchmarks/quality.py MODEL --calibration FILE --text FILE [--max-windows 64] [--rows w4-rtn w4-gptq]
"""

from rows import run

ROWS = {
    "w4-rtn": ("w4a16", ["rounding=rtn", "range=minmax"]),
    "w4-gptq": ("w4a16", []),
    "w4-asym-rtn": ("w4a16_asym", ["rounding=rtn", "range=minmax"]),
    "w4-asym-gptq": ("w4a16_asym", []),
    **{f"w4-effort-{effort}": ("w4a16", [f"--effort={effort}"]) for effort in range(4)},
    **{f"w4-asym-effort-{effort}": ("w4a16_asym", [f"--effort={effort}"]) for effort in range(4)},
    "w4-channel-gptq": ("w4a16_channel", []),
    "w2-gptq": ("w2a16", []),
    "w3-gptq": ("w3a16", []),
    "w8-rtn": ("w8a16", ["rounding=rtn", "range=minmax"]),
    "w8-gptq": ("w8a16", []),
}

if __name__ == "__main__":
    run(__doc__, ROWS)
