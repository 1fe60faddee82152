"""Run one `flaxtl` command in this process and kill it, without a chance to clean up, at its N-th moment.

    python tests/helpers/kill_at.py N SIGNAL train --config=... --workdir=...

Moments are the events of a run: each step, each batch of an evaluation, each row, each file that gets its final name,
each part of a checkpoint. The last line of the output gives their number; with N = 0 nothing is killed. Another line
says at which moment a phase ends.
"""

import os
import signal
import sys
from pathlib import Path

from flaxtl.cli.main import main
from flaxtl.train import checkpoints, eval_steps, logger, train_step

moments = 0


def moment(at, number):
    global moments
    moments += 1
    if moments == at:
        os.kill(os.getpid(), number)


def counted(function, at, number):
    def run(*given, **named):
        moment(at, number)
        return function(*given, **named)

    return run


def made_counted(maker, at, number):
    return lambda *given: counted(maker(*given), at, number)


def announced(save_phase):
    def run(*given, **named):
        print("phase ends at moment", moments, flush=True)
        return save_phase(*given, **named)

    return run


def watch(at, number):
    """Report every moment of a run just before it happens."""
    checkpoints.Checkpoints.save_phase = announced(checkpoints.Checkpoints.save_phase)
    makers = (
        (train_step, ("make_train_step", "make_multi_step")),
        (eval_steps, ("make_eval_step", "make_multi_eval_step")),
    )
    for module, names in makers:
        for name in names:
            setattr(module, name, made_counted(getattr(module, name), at, number))
    logger.MetricLogger.record = counted(logger.MetricLogger.record, at, number)
    for owner, name in ((Path, "replace"), (os, "rename"), (os, "fsync")):
        setattr(owner, name, counted(getattr(owner, name), at, number))


if __name__ == "__main__":
    watch(int(sys.argv[1]), signal.Signals[sys.argv[2]])
    try:
        main(sys.argv[3:])
    finally:
        print("moments", moments, flush=True)
