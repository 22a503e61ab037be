"""What holds for every test of the suite."""

from __future__ import annotations

import os

# The threads of OpenMP spin while they wait for each other. Beside anything else on the same cores that costs several
# times the work itself: LightGBM on two threads of a loaded machine of two cores took 36 s of CPU for 3.7 s of work.
# It is read when LightGBM is loaded, so it is set before any test module is; processes started by tests inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
