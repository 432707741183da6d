"""`python -m ptune`, which is also what `accelerate launch -m ptune` and `torchrun -m ptune` run."""

import sys

from ptune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
