"""`python benchmarks/table2/run.py [--form small|full] [--seeds 3] ...`: see `--help`, and `table2/suite.py`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # of `table2` and `record`
    from table2.suite import main

    sys.exit(main(sys.argv[1:]))
