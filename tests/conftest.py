"""Settings that hold for every test: nothing is fetched, nothing is drawn on a screen."""

from __future__ import annotations

import os

# Read by the libraries when they are imported, so set before any test module is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
