"""Which calls go to a kernel and which to the reference, and that either can be forced."""
import paddle
import pytest

from ppsr2q.ops import dispatch, native
from ppsr2q.ops.__main__ import report
from tests.ops import comparison
from tests.ops.comparison import point


def test_policies_nest_and_are_restored():
    comparison.require_kernels()
    assert dispatch.why_reference("linear") is None
    with dispatch.use("reference"):
        assert dispatch.why_reference("linear") == "the policy says so"
        with dispatch.use({"linear"}):
            assert dispatch.why_reference("linear") is None
            assert dispatch.why_reference("route") == "the policy says so"
        assert dispatch.why_reference("linear") == "the policy says so"
    assert dispatch.why_reference("route") is None


def test_unknown_policies_are_errors():
    with pytest.raises(ValueError, match="no operator is called .'scan'."):
        with dispatch.use({"scan"}):
            pass
    with pytest.raises(ValueError, match="'fast'"):
        with dispatch.use("fast"):
            pass


def test_other_dtypes_traces_and_observers_go_to_the_reference():
    x = paddle.zeros([2, 3])
    assert "float64" in dispatch.why_reference("linear", (x.astype("float64"), None))
    observer = point(4, -1.0, 1.0)
    observer.observing = True
    assert "observes" in dispatch.why_reference("linear", (x, None), (observer,))
    paddle.enable_static()
    try:
        assert dispatch.why_reference("linear", (x, None)) == "a graph is being traced"
        assert not dispatch.serves("linear", (x, None))
    finally:
        paddle.disable_static()


def test_a_forced_kernel_never_falls_back(monkeypatch):
    monkeypatch.setattr(native, "_attempt", lambda: (None, "no compiler"))
    assert dispatch.why_reference("linear") == "no compiler"
    with dispatch.use({"linear"}), pytest.raises(native.KernelsUnavailable, match="no compiler"):
        dispatch.serves("linear", (paddle.zeros([2, 3]), None))
    monkeypatch.undo()
    comparison.require_kernels()
    with dispatch.use({"linear"}), pytest.raises(ValueError, match="linear: the policy asks for the kernel, but .*float64"):
        dispatch.serves("linear", (paddle.zeros([2, 3], "float64"), None))


def test_report_lists_every_operator(monkeypatch):
    comparison.require_kernels()
    lines = report().splitlines()
    for operator in dispatch.ARGUMENTS:
        assert any(line.split()[:2] == [operator, "kernel"] for line in lines)
    assert native.instruction_set() in report()
    monkeypatch.setattr(native, "_attempt", lambda: (None, "no compiler"))
    line, = [line for line in report().splitlines() if line.startswith("linear")]
    assert "reference  no compiler" in line
