"""What integers for inputs and for the KV cache cost and lose, one row each; the rows are described in rows.py.

    python benchmarks/activations.py MODEL --calibration FILE --text FILE [--max-windows 64] [--rows w8a8 w8a8-plain]

"plain" is rounding to nearest with min-max ranges and no transform. The peak memory of the two rows "samples" is that
of a statistics pass over 32 and over 512 windows.
"""

from rows import run

PLAIN = ["rounding=rtn", "range=minmax", "transforms=[]"]
SHORT = ["calibration.length=128", "activation_range=mse", "static_error_limit=none"]

ROWS = {
    "w8a16-plain": ("w8a16", PLAIN),
    "w8a16": ("w8a16", []),
    "w8a16-kv8": ("w8a16", ["kv_cache=int8"]),
    "w8a8-plain": ("w8a8", PLAIN),
    "w8a8": ("w8a8", []),
    "static-plain": ("w8a8_static", [*PLAIN, "activation_range=minmax", "static_error_limit=none"]),
    "static": ("w8a8_static", []),
    "w4a16": ("w4a16", []),
    "w4a8-plain": ("w4a8", ["transforms=[]"]),
    "w4a8": ("w4a8", []),
    "samples-32": ("w8a8_static", [*PLAIN, *SHORT, "calibration.samples=32"]),
    "samples-512": ("w8a8_static", [*PLAIN, *SHORT, "calibration.samples=512"]),
}

if __name__ == "__main__":
    run(__doc__, ROWS)
