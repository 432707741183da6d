"""Parts of a frozen model in fewer steps: the same mathematics, less time and memory.

Each module here is a subclass of the one it stands in for and takes over its weights; `replacement` names it. The
backward goes to activations alone, since the weights are frozen. What cannot be done in a given call (another dtype, a
weight that trains) is left to the original.
"""

from ptune.packed.fused.replacements import has_own_packing, replacement

__all__ = ["has_own_packing", "replacement"]
