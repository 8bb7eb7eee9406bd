from __future__ import annotations

import os
import signal

# Tests are many small computations: a second thread costs more than it gives, and both cores may run tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests that send it would
# wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
