"""`python sabotaged.py SABOTAGES SCRIPT ARGS` runs a script with SABOTAGES, functions of sabotage.py as JSON."""

import json
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import sabotage

if __name__ == "__main__":
    for name, *arguments in json.loads(sys.argv[1]):
        getattr(sabotage, name)(*arguments)
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
