"""launch.py as ZeroGPU runs it, on a machine without a GPU: the process that gets one has none.

Run by test_spaces.py, with the variables of such a Space. Everything else is `spaces`' own.
"""

import runpy

import spaces.zero.torch

for name in ("unpatch", "init", "move"):
    setattr(spaces.zero.torch, name, lambda *_, **__: None)

if __name__ == "__main__":
    runpy.run_path("launch.py", run_name="__main__")
