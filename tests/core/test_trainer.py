"""The loop against Adam by hand, and a resumed run against an uninterrupted one, bit for bit."""
from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppsr2q.core.errors import Interrupted, UserError
from ppsr2q.core.files import load_artifact, save_artifact
from ppsr2q.core.resume import Comparison
from ppsr2q.core.trainer import ParameterGroup, Trainer, TrainerSettings
from tests.core.tiny_stage import TinyStage, batches

HARD = dict(accumulate=2, grad_clip=0.5, warmup=3, average_last=5, log_every=2, save_every=4, validate_every=5)


class Quadratic:
    """0.5 |w - target|^2, whose gradient is known."""

    name = "quadratic"

    def __init__(self, start: np.ndarray, lr: float) -> None:
        self.w = paddle.create_parameter([2], "float32",
                                         default_initializer=paddle.nn.initializer.Assign(start))
        self.lr = lr

    def parameter_groups(self):
        return [ParameterGroup("w", {"w": self.w}, self.lr)]

    def step(self, batch):
        return {"loss": 0.5 * ((self.w - paddle.to_tensor(batch["target"])) ** 2).sum()}

    def after_update(self):
        return {}

    def validate(self):
        return {}

    def dashboard(self, dashboard, iteration):
        pass


def test_adam_clipping_accumulation_and_schedule_by_hand(tmp_path):
    start, lr, clip, n = np.array([1.0, -2.0]), 0.1, 0.7, 6
    targets = np.random.default_rng(0).normal(size=(n, 2, 2))
    stage = Quadratic(start.astype(np.float32), lr)
    settings = TrainerSettings(n, accumulate=2, grad_clip=clip, betas=(0.8, 0.95), epsilon=1e-3, warmup=2,
                               min_lr_ratio=0.1, log_every=1)
    result = Trainer(stage, lambda i, k, c: {"target": targets[i, k].astype(np.float32)}, settings,
                     tmp_path / "c").run()
    w, m, v = start.copy(), 0, 0
    for i in range(n):
        errors = w - targets[i]
        gradient = errors.mean(axis=0)
        norm = math.sqrt((gradient ** 2).sum())
        assert result.history[i]["loss"] == pytest.approx((0.5 * (errors ** 2).sum(axis=1)).mean(), rel=1e-5)
        assert result.history[i]["gradient_norm"] == pytest.approx(norm, rel=1e-5)
        gradient *= min(1, clip / norm)
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient ** 2
        corrected_m, corrected_v = m / (1 - 0.8 ** (i + 1)), v / (1 - 0.95 ** (i + 1))
        rate = lr * ((i + 1) / 2 if i < 2 else 0.1 + 0.45 * (1 + math.cos(math.pi * (i - 2) / 4)))
        w = w - rate * corrected_m / (np.sqrt(corrected_v) + 1e-3)
    np.testing.assert_allclose(stage.w.numpy(), w, rtol=1e-5)


def _assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop_at):
    whole = TinyStage()
    expected = Trainer(whole, batches, TrainerSettings(10, **HARD), tmp_path / "whole").run()

    def interrupting(iteration, index, count):
        if iteration == stop_at - 1 and index == 0:
            os.kill(os.getpid(), signal.SIGINT if stop_at == 4 else signal.SIGTERM)
        return batches(iteration, index, count)
    path, handler = tmp_path / "part", signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"after iteration {stop_at} of 10; saved .*part$"):
        Trainer(TinyStage(), interrupting, TrainerSettings(10, **HARD), path).run()
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = TinyStage()
    result = Trainer(resumed, batches, TrainerSettings(10, **HARD), path).run(resume=True)
    _assert_same_bits(resumed.state(), whole.state())
    _assert_same_bits(load_artifact(path).tensors, load_artifact(tmp_path / "whole").tensors)
    assert [h["iteration"] for h in result.history] == [h["iteration"] for h in expected.history]
    assert result.last_losses == expected.last_losses


def test_killed_and_resumed_in_another_process_equals_uninterrupted(tmp_path):
    whole = TinyStage()
    Trainer(whole, batches, TrainerSettings(7, **HARD), tmp_path / "whole").run()
    code = f"""
import os, signal, sys, paddle
from ppsr2q.core.trainer import Trainer, TrainerSettings
from tests.core.tiny_stage import TinyStage, batches
paddle.nn.Linear(5, 5)  # shifts the names that Paddle gives to parameters
def killing(iteration, index, count):
    if iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return batches(iteration, index, count)
Trainer(TinyStage(), killing, TrainerSettings(7, **{HARD}), {str(tmp_path / "part")!r}).run()
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False,
                            capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = TinyStage()
    Trainer(resumed, batches, TrainerSettings(7, **HARD), tmp_path / "part").run(resume=True)
    _assert_same_bits(resumed.state(), whole.state())


def test_a_finished_run_resumes_to_its_result(tmp_path):
    first = Trainer(TinyStage(), batches, TrainerSettings(3), tmp_path / "c").run()
    stage = TinyStage()
    again = Trainer(stage, batches, TrainerSettings(3), tmp_path / "c").run(resume=True)
    assert again == first
    stored = load_artifact(tmp_path / "c").tensors
    _assert_same_bits(stage.state(), {name: stored[f"{name}/value"] for name in stage.state()})


def test_nothing_to_resume_is_said(tmp_path, capsys):
    assert Trainer(TinyStage(), batches, TrainerSettings(1), tmp_path / "c").run(resume=True).iterations == 1
    assert "nothing to resume" in capsys.readouterr().out


def test_nan_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "c"
    with pytest.raises(UserError, match=r"iteration 4 of stage tiny: loss is nan.*c, is unchanged"):
        Trainer(TinyStage(nan_at=3), batches, TrainerSettings(9, save_every=2), path).run()
    assert load_artifact(path).metadata["state"]["iteration"] == 2
    again = Trainer(TinyStage(), batches, TrainerSettings(9, save_every=2), path).run(resume=True)
    assert again.iterations == 9


@pytest.mark.parametrize("change, message", [
    ({"config": {"train": {"lr": 0.2}}, "weights_sha256": "a"}, r"train\.lr was 0\.1, now it is 0\.2"),
    ({"config": {"train": {"lr": 0.1}}, "weights_sha256": "b"}, "other weights, find the old ones, or leave"),
    ({"weights_sha256": "a"}, r"train\.lr was 0\.1, now it is None"),
])
def test_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    run = {"config": {"train": {"lr": 0.1}}, "weights_sha256": "a"}
    Trainer(TinyStage(), batches, TrainerSettings(2), tmp_path / "c", metadata=run).run()
    stage = TinyStage()
    before = stage.state()
    with pytest.raises(UserError, match=f"c: checkpoint of another run: {message}"):
        Trainer(stage, batches, TrainerSettings(2), tmp_path / "c", metadata=change,
                comparison=Comparison(advice={"weights_sha256": "other weights, find the old ones"})).run(resume=True)
    _assert_same_bits(stage.state(), before)


def test_where_things_lie_and_how_often_is_reported_may_change(tmp_path):
    def run(settings, **config):
        return Trainer(TinyStage(), batches, settings, tmp_path / "c", metadata={"config": config},
                       comparison=Comparison(free=["run.config.output_dir", "run.config.device"]))
    run(TrainerSettings(2), output_dir="a", device="cpu", train={"log_every": 10}).run()
    run(TrainerSettings(2, log_every=1, save_every=1, validate_every=0),
        output_dir="b", device="auto", train={"log_every": 1}).run(resume=True)
    with pytest.raises(UserError, match="settings.iterations was 2, now it is 3"):
        run(TrainerSettings(3), output_dir="a", device="cpu").run(resume=True)


def test_checkpoint_with_other_parameters_is_refused(tmp_path):
    class Wider(TinyStage):
        def __init__(self):
            super().__init__()
            self.first = paddle.nn.Linear(4, 3, bias_attr=False)
    Trainer(TinyStage(), batches, TrainerSettings(1), tmp_path / "c").run()
    with pytest.raises(UserError, match="c: the checkpoint has an unknown first/bias"):
        Trainer(Wider(), batches, TrainerSettings(1), tmp_path / "c").run(resume=True)


def test_a_parameter_without_gradient_stays(tmp_path):
    class Spare(TinyStage):
        def __init__(self):
            super().__init__()
            self.spare = paddle.create_parameter([3], "float32")

        def parameter_groups(self):
            return [*super().parameter_groups(), ParameterGroup("spare", {"p": self.spare}, 0.1)]
    stage = Spare()
    before = stage.spare.numpy()
    Trainer(stage, batches, TrainerSettings(2), tmp_path / "c").run()
    np.testing.assert_array_equal(stage.spare.numpy(), before)


def test_output_and_dashboard(tmp_path, capsys):
    class Recorder:
        def __init__(self):
            self.scalars, self.histograms = [], []

        def scalar(self, tag, value, step):
            self.scalars.append((tag, step))

        def histogram(self, tag, values, step):
            self.histograms.append(step)
    recorder = Recorder()
    settings = TrainerSettings(5, log_every=2, validate_every=4)
    Trainer(TinyStage(), batches, settings, tmp_path / "c", recorder).run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "loss" in line] == ["1/5", "2/5", "4/5", "5/5"]
    assert all("s/it" in line and "left" in line for line in lines if "loss" in line)
    assert sum("validation/score" in line for line in lines) == 2
    assert recorder.histograms == [4, 5]
    tags = {tag for tag, _ in recorder.scalars}
    assert tags == {"train/loss", "train/error", "train/gradient_norm", "train/projected",
                    "learning_rate/first", "learning_rate/second", "validation/score"}


def test_the_result_is_the_mean_of_the_last_iterates(tmp_path):
    iterates, measured = [], []

    class Watched(TinyStage):
        def after_update(self):
            iterates.append({name: value.copy() for name, value in self.state().items()})
            return {}

        def validate(self):
            measured.append(self.state())
            return {"score": 0.0}
    stage = Watched()
    Trainer(stage, batches, TrainerSettings(6, average_last=3, validate_every=2), tmp_path / "c").run()
    for name, value in stage.state().items():
        np.testing.assert_allclose(value, np.mean([i[name] for i in iterates[3:]], axis=0), rtol=1e-6)
        np.testing.assert_array_equal(measured[0][name], iterates[1][name])  # not begun: the iterate itself
        np.testing.assert_array_equal(measured[2][name], value)  # what is measured last is what is delivered
    assert np.abs(iterates[5]["first/weight"] - stage.state()["first/weight"]).max() > 1e-3


def test_checkpoints_from_before_an_option_existed_go_on(tmp_path):
    path = tmp_path / "c"
    config = {"train": {"lr_bounds": 0.5}}
    Trainer(TinyStage(), batches, TrainerSettings(2), path, metadata={"config": config}).run()
    artifact = load_artifact(path)
    del artifact.metadata["identity"]["settings"]["average_last"], artifact.metadata["averaged"]
    save_artifact(path, artifact.tensors, artifact.kind, artifact.metadata)
    newer = {"train": {"lr_bounds": 0.5, "finetune": "none"}}
    assert Trainer(TinyStage(), batches, TrainerSettings(2), path, metadata={"config": newer}).run(True).iterations == 2
    newer["train"]["finetune"] = "all"
    with pytest.raises(UserError, match="train.finetune was 'none', now it is 'all'"):
        Trainer(TinyStage(), batches, TrainerSettings(2), path, metadata={"config": newer}).run(resume=True)
