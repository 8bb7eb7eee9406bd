"""python -m fuzz, with tests/ on the path: see run.py."""

import os
import sys

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from fuzz.run import main

sys.exit(main(sys.argv[1:]))
