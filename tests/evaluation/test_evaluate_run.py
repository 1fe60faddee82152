"""The evaluation at the end of a run: the programs that it shares with training."""

import pytest
from helpers import tiny_run

from flaxtl.evaluation.evaluate import evaluate_run
from flaxtl.train import eval_steps, trainer


@pytest.mark.slow
def test_evaluate_run_in_bfloat16_compiles_no_step_again(folder, tmp_path, monkeypatch):
    make, steps = eval_steps.make_eval_step, []
    monkeypatch.setattr(eval_steps, "make_eval_step", lambda *given: steps.append(make(*given)) or steps[-1])
    config = tiny_run.config(folder, dtype="bfloat16")
    result = trainer.train(config, tmp_path / "run", tiny_run.quiet(), "flaxtl train")
    evaluate_run(result, tiny_run.quiet())
    assert len(steps) > len(set(steps))  # training and evaluation share one
    assert {step._cache_size() for step in steps} == {1}
