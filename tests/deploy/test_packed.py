import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact, save_artifact
from ppsr2q.deploy import packed
from ppsr2q.deploy.packed import pack_codes, read_packed, unpack_codes, write_packed
from tests.deploy.models import random_model
from tests.deploy.mutations import mutate_artifact, mutate_bytes

MUTATIONS = int(os.environ.get("PPSR2Q_MUTATIONS", "1000"))  # of each kind


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    write_packed(path, random_model())
    return path


def assert_equal(found, expected):
    assert found.architecture == expected.architecture and found.metadata == json.loads(json.dumps(expected.metadata))
    assert found.quantizers == expected.quantizers
    for key in ("codes", "floats"):
        a, b = getattr(found, key), getattr(expected, key)
        assert set(a) == set(b)
        for name in b:
            assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name


@pytest.mark.parametrize("bits, expected", [
    (4, [0x21, 0x43, 0x05]), (2, [0b00_11_10_01, 0b01]), (3, [0b11_010_001, 0b0_101_100_0]), (8, [1, 2, 3, 4, 5]),
])
def test_codes_lie_least_significant_bit_first(bits, expected):
    codes = np.array([1, 2, 3, 4, 5], np.uint8) & (2**bits - 1)
    assert pack_codes(codes, bits).tolist() == expected


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("elements", [1, 7, 8, 9, 100])
def test_codes_survive_packing(bits, elements):
    codes = np.random.default_rng(bits).integers(0, 2**bits, elements, np.uint8)
    run = pack_codes(codes, bits)
    assert run.size == -(-elements * bits // 8)
    assert np.array_equal(unpack_codes(run, bits, elements), codes)


@pytest.mark.parametrize("bits, overrides", [
    (4, {}), (2, {}), (1, {}), (4, {"**.q.weight": 3, "layers.0.**.A": 8, "**.prompt_table": None, "layers.1.**.map": None}),
])
def test_a_model_survives_the_file(bits, overrides, tmp_path):
    model = random_model(bits, overrides)
    write_packed(tmp_path / "m.safetensors", model)
    assert_equal(read_packed(tmp_path / "m.safetensors"), model)


def test_the_file_holds_three_tensors(file):
    assert {k: v.dtype.name for k, v in load_artifact(file).tensors.items()} == {
        "codes": "uint8", "bounds": "float32", "rest": "float32"}


def test_half_precision_halves_the_rest(tmp_path):
    model = random_model()
    write_packed(tmp_path / "half.safetensors", model, "float16")
    found = read_packed(tmp_path / "half.safetensors")
    for name, value in model.floats.items():
        assert np.array_equal(found.floats[name], value.astype(np.float16).astype(np.float32))
    name = next(iter(model.floats))
    model.floats[name][:] = 1e6
    with pytest.raises(UserError, match="float16"):
        write_packed(tmp_path / "large.safetensors", model, "float16")
    assert not (tmp_path / "large.safetensors").exists()


def test_folds_stand_in_the_place_of_their_parameters(file):
    model = read_packed(file)
    layer = "layers.3.residual_group.layers.4"
    assert model.codes[f"{layer}.assm.selectiveScan.points.A"].shape == (48, 8)
    assert model.codes[f"{layer}.assm.points.prompt_table"].shape == (64, 8)
    gone = {f"{layer}.assm.selectiveScan.A_logs", f"{layer}.embeddingA.weight", f"{layer}.assm.embeddingB.weight"}
    assert not gone & (set(model.codes) | set(model.floats))
    assert f"{layer}.assm.selectiveScan.dt_projs_bias" in model.floats  # its point is not in this plan


@pytest.mark.parametrize("change, message", [
    (lambda m: m.codes.popitem(), "codes are not those"),
    (lambda m: m.floats.popitem(), "floats are not those"),
    (lambda m: m.quantizers.popitem(), "quantizers are not those"),
    (lambda m: m.codes.update({k: v + 16 for k, v in list(m.codes.items())[:1]}), "more than 4 bits"),
    (lambda m: m.floats.update({k: v.astype(np.float64) for k, v in list(m.floats.items())[:1]}), "must be float32"),
])
def test_writing_a_wrong_model_is_a_mistake_of_the_program(change, message, tmp_path):
    model = random_model()
    change(model)
    with pytest.raises(ValueError, match=message):
        write_packed(tmp_path / "m.safetensors", model)


def rewrite(source, target, change_tensors=None, change_metadata=None, kind=packed.PACKED_KIND):
    """A file whose hash is right although its content is not what ``write_packed`` would write."""
    artifact = load_artifact(source)
    tensors = {name: array.copy() for name, array in artifact.tensors.items()}
    metadata = json.loads(json.dumps(artifact.metadata))
    if change_tensors:
        change_tensors(tensors)
    if change_metadata:
        change_metadata(metadata)
    save_artifact(target, tensors, kind, metadata)
    return target


def _set(name, at, value):
    return lambda tensors: tensors[name].__setitem__(at, value)


@pytest.mark.parametrize("change, message", [
    (_set("bounds", 0, np.nan), "not finite and ordered"), (_set("bounds", 1, np.inf), "not finite and ordered"),
    (_set("bounds", slice(0, 2), 1.0), "not finite and ordered"), (_set("bounds", slice(0, 2), (1, -1)), "ordered"),
    (_set("bounds", slice(0, 2), (-3e38, 3e38)), "not finite and ordered"), (_set("rest", 5, np.nan), "NaN"),
    (lambda t: t.update(rest=t["rest"][:-1]), "rest is float32"), (lambda t: t.update(codes=t["codes"][1:]), "codes is"),
    (lambda t: t.update(rest=np.append(t["rest"], np.float32(0))), "rest is float32"),
    (lambda t: t.update(rest=t["rest"].astype(np.float64)), "rest is float64"),
    (lambda t: t.update(codes=t["codes"].view(np.int8)), "codes is int8"),
    (lambda t: t.update(bounds=t["bounds"].reshape(-1, 2)), "bounds is"),
    (lambda t: t.update(more=np.zeros(3)), "holds tensors"), (lambda t: t.pop("codes"), "holds tensors"),
])
def test_wrong_tensors_are_refused(file, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_packed(rewrite(file, tmp_path / "m.safetensors", change))


@pytest.mark.parametrize("change, message", [
    (lambda m: m["packed"].update(version=2), "another version"), (lambda m: m.pop("packed"), "do not name"),
    (lambda m: m.update(packed=7), "version is missing"), (lambda m: m["packed"].update(layout_sha256="0"), "another network"),
    (lambda m: m["architecture"].update(scale=4), "another network"), (lambda m: m["architecture"].update(scale=3), "unknown"),
    (lambda m: m.update(architecture="x"), "unknown architecture"), (lambda m: m["architecture"].update(x="a"), "unknown"),
    (lambda m: m["plan"]["entries"][0].update(parameter="a" * 5000), "at most"),
    (lambda m: m["plan"]["entries"][0].update(source="a" * 5000), "at most"), (lambda m: m["architecture"].update(name=[]), "unknown"),
    (lambda m: m["plan"].update(bits=9), "bits must be"), (lambda m: m["plan"].update(bits="4"), "bits must be"),
    (lambda m: m.update(plan=None), "plan is not one"), (lambda m: m["plan"].update(entries=7), "entries must be"),
    (lambda m: m["plan"]["entries"][0].update(pattern=None), "must be text"),
    (lambda m: m["plan"]["entries"][0].update(fixed=[2, 1]), "ordered"), (lambda m: m["plan"]["entries"].pop(), "another"),
    (lambda m: m["plan"]["entries"][0].update(pattern="nowhere"), "matches no layer"),
    (lambda m: m["plan"].update(options={"zero_point": "x", "parametrization": "absolute"}), "plan is not one"),
    (lambda m: m["plan"].update(overrides={"**": 4, "**.q.*": 0}), "bits must be"),
])
def test_wrong_metadata_are_refused(file, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_packed(rewrite(file, tmp_path / "m.safetensors", change_metadata=change))


def test_set_padding_bits_are_refused():
    run = pack_codes(np.array([1, 2, 3], np.uint8), 2)
    assert unpack_codes(run, 2, 3).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="behind the last code"):
        unpack_codes(run | 0x40, 2, 3)


def test_positive_decay_rates_are_refused(tmp_path):
    model = random_model()
    name = "layers.0.residual_group.layers.0.assm.selectiveScan.points.A"
    model.quantizers[name] = dataclasses.replace(model.quantizers[name], lower=-0.1, upper=1.4)
    model.codes[name][:] = 1  # its cell begins at -0.05
    write_packed(tmp_path / "fits.safetensors", model)
    read_packed(tmp_path / "fits.safetensors")
    model.codes[name][0, 0] = 2  # its cell begins at 0.05
    write_packed(tmp_path / "m.safetensors", model)
    with pytest.raises(UserError, match="positive numbers"):
        read_packed(tmp_path / "m.safetensors")


def test_other_files_are_refused(file, tmp_path):
    with pytest.raises(UserError, match="no such file.*export"):
        read_packed(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match="expected 'packed model'"):
        read_packed(rewrite(file, tmp_path / "other.safetensors", kind="fused model"))
    safetensors.numpy.save_file({"codes": np.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not one that ppsr2q wrote"):
        read_packed(tmp_path / "foreign.safetensors")
    with open(tmp_path / "large.safetensors", "wb") as large:
        large.truncate(packed.MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="too many"):
        read_packed(tmp_path / "large.safetensors")


def _read_or_refuse(path):
    """Whether the file was read; anything but a UserError is a failure of the test."""
    try:
        read_packed(path)
    except UserError as error:
        assert str(path) in str(error)
        return False
    return True


def test_mutated_bytes_are_refused(file, tmp_path):
    """Flips, cuts, insertions and overwritten runs, half of them in the header."""
    rng, content, path = np.random.default_rng(1), file.read_bytes(), tmp_path / "m.safetensors"
    for _ in range(MUTATIONS):
        mutated = mutate_bytes(content, rng)
        path.write_bytes(mutated)
        assert not _read_or_refuse(path) or mutated == content


def test_mutated_content_with_a_right_hash_does_no_harm(file, tmp_path, monkeypatch):
    """What a hostile writer can do who signs his work: it is refused, or it is a model of finite numbers."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the disk's patience is not under test
    artifact = load_artifact(file)
    rng, path, refused = np.random.default_rng(2), tmp_path / "m.safetensors", 0
    for _ in range(MUTATIONS // 4):
        tensors, metadata = mutate_artifact(artifact, rng)
        save_artifact(path, tensors, packed.PACKED_KIND, metadata)
        refused += not _read_or_refuse(path)
    assert refused > MUTATIONS // 16


def test_reading_needs_no_paddle(file):
    code = ("import sys; sys.modules['paddle'] = None\n"
            "from ppsr2q.deploy.packed import read_packed\n"
            f"print(len(read_packed({str(file)!r}).codes))")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(random_model().codes)
