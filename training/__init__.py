"""Training: see docs/code.md. The scripts import it first, so this is the time at which their process began."""

import time

BEGAN = time.perf_counter()
