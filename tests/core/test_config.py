"""Configs: inheritance, overrides, and a message for every mistake."""
from __future__ import annotations

import dataclasses
import typing

import pytest

from ppsr2q.core.config import Config, config_to_dict, describe_options, load_config
from ppsr2q.core.typed import build, check
from ppsr2q.core.errors import UserError
from ppsr2q.core.typed import option, options


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path
    return write


def test_defaults():
    config = load_config()
    assert config == Config() and config.quant.bits == 4 and config.train.betas == [0.9, 0.999]


def test_defaults_obey_their_own_limits():
    assert build(check(config_to_dict(Config()), Config, "defaults"), Config) == Config()


def test_every_option_has_help_and_a_line():
    lines = describe_options().splitlines()
    assert len(lines) == len(list(options(Config)))
    assert all(help for *_, help in options(Config))
    assert any(line.startswith("quant.bits = 4  (an integer at least 1 and at most 8, or null): ")
               for line in lines)


def test_later_bases_win_and_the_file_wins_over_all(write):
    write("a/one.yml", "seed: 1\nquant: {bits: 8, overrides: {fc1: 2}}\ntrain: {batch: 3}\n")
    write("a/two.yml", "_base_: one.yml\nseed: 2\nquant: {overrides: {fc2: 3}}\n")
    write("a/three.yml", "train: {warmup: 7}\n")
    path = write("main.yml", "_base_: [a/two.yml, a/three.yml]\nquant: {bits: null}\n")
    config = load_config(path, ["train.batch=5", "train.batch=6"])
    assert (config.seed, config.quant.bits, config.train.batch, config.train.warmup) == (2, None, 6, 7)
    assert config.quant.overrides == {"fc1": 2, "fc2": 3}


def test_what_is_set_last_comes_last_of_two_overrides(write):
    path = write("a.yml", "quant: {overrides: {'*.fc1.*': 8}}\n")
    config = load_config(path, ["quant.overrides.layers.*=4", "quant.overrides.*.fc1.*=2"])
    assert list(config.quant.overrides.items()) == [("layers.*", 4), ("*.fc1.*", 2)]


def test_one_base_reached_twice_is_no_cycle(write):
    write("base.yml", "seed: 5\n")
    write("left.yml", "_base_: base.yml\n")
    path = write("main.yml", "_base_: [left.yml, base.yml]\n")
    assert load_config(path).seed == 5


def test_cycle_is_refused(write):
    write("a.yml", "_base_: b.yml\n")
    path = write("b.yml", "_base_: a.yml\n")
    with pytest.raises(UserError, match=r"circle: .*b\.yml -> .*a\.yml -> .*b\.yml"):
        load_config(path)


def test_numbers_that_yaml_reads_as_text():
    config = load_config(None, ["train.lr_bounds=1e-2", "train.epsilon=1e-8", "loss.feature_weight=5"])
    assert config.train.lr_bounds == 0.01 and config.train.epsilon == 1e-8
    assert isinstance(config.loss.feature_weight, float)


def test_names_in_a_dict_option_may_hold_dots():
    config = load_config(None, ["quant.overrides.layers.*.fc1=8", "quant.overrides={'*.u': 6}"])
    assert config.quant.overrides == {"layers.*.fc1": 8, "*.u": 6}


def test_null_where_it_is_allowed_only():
    assert load_config(None, ["quant.bits=null"]).quant.bits is None
    with pytest.raises(UserError, match="seed must be"):
        load_config(None, ["seed=null"])


@pytest.mark.parametrize("text, message", [
    ("quant: {bit: 4}", r"main\.yml: unknown key quant\.bit; did you mean quant\.bits\?"),
    ("zzz: 4", r"unknown key zzz; expected one of: device, seed"),
    ("quant: {bits: 9}", r"main\.yml: quant\.bits must be an integer at least 1 and at most 8, or null, got"),
    ("quant: {bits: 0}", "got 0"),
    ("quant: {bits: 4.0}", r"got 4\.0"),
    ("quant: {bits: true}", "got True"),
    ("quant: {bits: four}", "got 'four'"),
    ("quant: {overrides: {fc1: 12}}", r"quant\.overrides must be a mapping.*at most 8.*, got 12"),
    ("quant: 4", "main.yml: quant: expected 'key: value' lines, got 4"),
    ("model: {scale: 3}", "one of 2, 4, got 3"),
    ("device: tpu", "one of auto, cpu, gpu, got 'tpu'"),
    ("train: {betas: [0.9]}", r"a list of 2 values, each a number at least 0 and below 1, got \[0\.9\]"),
    ("train: {betas: [0.9, 1]}", r"got 1\.0"),
    ("train: {grad_clip: 0}", "a number above 0, or null"),
    ("train: {lr_gate: .nan}", "got nan"),
    ("train: {lr_gate: .inf}", "got inf"),
    ("train: {lr_gate: 1e-2x}", "got '1e-2x'"),
    ("train: {augment: 1}", "true or false, got 1"),
    ("data: {root: 10}", "text .*, or null, got 10"),
    ("data: {sets: Set5}", "a list of values"),
    ("_base_: 3", "_base_ must be a file name or a list"),
    ("_base_: gone.yml", r"gone\.yml: no such config file"),
    ("- 1", r"expected 'key: value' lines"),
    ("seed: [", "not valid YAML"),
    ("output_dir: 2024-02-30", "not valid YAML: day is out of range"),
    ("seed: 1\nseed: 2", "'seed' is given twice"),
])
def test_mistakes_in_files(write, text, message):
    with pytest.raises(UserError, match=message):
        load_config(write("main.yml", text + "\n"))


def test_a_mistake_in_a_base_names_the_base(write):
    write("base.yml", "seed: x\n")
    with pytest.raises(UserError, match=r"base\.yml: seed must be"):
        load_config(write("main.yml", "_base_: base.yml\nseed: 1\n"))


@pytest.mark.parametrize("text, message", [
    ("quant.bits=9", "-o quant.bits=9: quant.bits must be"), ("quant.bits", "expected key=value"),
    ("=4", "expected key=value"), ("quant.bit=4", "did you mean quant.bits"),
    ("quant=4", "expected 'key: value'"),
    ("output_dir=2024-02-30", "2024-02-30' is not a valid YAML value"), ("quant=" + "[" * 5000, "not a valid YAML value"),
    ("train.lr_gate=1" + "0" * 400, "train.lr_gate must be"),
    ("seed.x=4", "seed must be an integer"), ("seed=[", "not a valid YAML value"),
    ("quant..bits=1", "unknown key"),
])
def test_mistakes_in_overrides(text, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [text])


def test_unreadable_files(tmp_path):
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    for name, message in (("gone.yml", "no such"), ("binary.yml", "not valid YAML"), ("", "cannot be read")):
        with pytest.raises(UserError, match=message):
            load_config(tmp_path / name)


def test_a_leading_tilde_is_the_home_folder(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(write("a.yml", "output_dir: ~/runs"), ["data.train=~/images", "model.weights=w~.pdparams"])
    assert (config.output_dir, config.data.train) == ("/home/someone/runs", "/home/someone/images")
    assert config.model.weights == "w~.pdparams"


def test_empty_file_is_all_defaults(write):
    assert load_config(write("empty.yml", "# nothing\n")) == Config()


def test_a_new_option_is_one_line():
    @dataclasses.dataclass(frozen=True)
    class Schema:
        rate: typing.Optional[float] = option(None, "a rate", above=0)
    assert list(options(Schema)) == [("rate", None, "a number above 0, or null", "a rate")]
