"""What a GPU and its host would have had to do: kernels, copies and waits, each by the line that caused it."""

from __future__ import annotations

import collections
import sys

_LIBRARIES = ("transformers/", "accelerate/", "peft/")


class Ledger:
    """What a GPU and its host would have had to do."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.kernels = 0
        self.by_op = collections.Counter()
        self.by_site = collections.Counter()
        self.waits = collections.Counter()
        self.copies = collections.Counter()
        self.host = collections.Counter()

    def kernel(self, op, number):
        self.kernels += number
        self.by_op[op] += number
        if self.where:
            self.by_site[site()] += number

    where = True

    def wait(self, kind):
        self.waits[(kind, site())] += 1

    def copy(self, kind):
        self.copies[(kind, site())] += 1

    def computed_on_host(self, op):
        """Note an operation on numbers that the host did by itself."""
        self.host[(op, site())] += 1

    def report(self, top=25):
        lines = [f"kernels {self.kernels}  waits {sum(self.waits.values())}  copies {sum(self.copies.values())}"]
        lines += [f"  wait {n:5d}  {kind:28s} {place}" for (kind, place), n in self.waits.most_common(top)]
        lines += [f"  site {n:5d}  {place}" for place, n in self.by_site.most_common(top)]
        lines += ["  ops " + ", ".join(f"{op}:{n}" for op, n in self.by_op.most_common(top))]
        return "\n".join(lines)


LEDGER = Ledger()


def site():
    """The innermost line of ptune on the stack; of transformers/accelerate/torch where there is none."""
    frame, other = sys._getframe(2), None
    while frame is not None:
        name = frame.f_code.co_filename
        if "/src/ptune/" in name:
            return f"ptune/{name.rsplit('/ptune/', 1)[1]}:{frame.f_lineno} {frame.f_code.co_name}"
        if other is None and ("transformers/" in name or "accelerate/" in name or "peft/" in name):
            other = f"{name.split('site-packages/')[-1]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return other or "backward/other"
