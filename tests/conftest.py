from __future__ import annotations

import os

# Tests are many small computations: a second thread costs more than it gives, and both cores may run tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
