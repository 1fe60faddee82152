"""The process of one way to do the work: `python -m benchmarks.worker`, asked by turns.py, a line of JSON each time.

First what to do: {"module", "work", "settings"}; the answer tells of it, or why it cannot be done. Then "turn": the
answer is its {"rate"}. It ends with its input.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO


class NoSuchPeer(Exception):
    """The peer has no such network, or does no such work; says so."""


@dataclass
class Trial:
    """Work that is ready. `step` does it once with a batch, `wait` returns when a step's result is there.

    Steps that `queue` are waited for at the end of a turn only, as accelerators want it.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], object]
    queue: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, steps: int) -> float:
        """Seconds that so many steps take."""
        started = time.perf_counter()
        for number in range(steps):
            result = self.step()
            if not self.queue or number == steps - 1:
                self.wait(result)
        return time.perf_counter() - started


def main() -> None:
    """Answer until there is no further question."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    try:
        asked = json.loads(sys.stdin.readline())
        settings = asked["settings"]
        module = importlib.import_module(f"benchmarks.{asked['module']}")
        trial: Trial = getattr(module, asked["work"])(settings)
        trial.run(2)  # compiles
        steps = max(1, round(settings["seconds"] / trial.run(1)))
    except NoSuchPeer as error:
        _answer(answers, {"failed": str(error)})
        return
    except Exception as error:  # whatever a peer may raise; it must not end the others' run
        first = (str(error).strip().splitlines() or [""])[0]
        _answer(answers, {"failed": f"failed: {type(error).__name__}: {first}"})
        return
    _answer(answers, trial.facts | {"steps_a_turn": steps})
    for _ in sys.stdin:
        _answer(answers, {"rate": steps * settings["batch"] / trial.run(steps)})


def _answer(answers: TextIO, found: dict[str, Any]) -> None:
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
