import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.core.plan import matches
from ppsr2q.models import MambaIRv2Light
from ppsr2q.quant import PLAN_ENTRIES, Plan, PlanEntry
from ppsr2q.quant.cost import count, parameter_sizes, plan_table
from tests.quant.networks import Small

ENTRIES = PLAN_ENTRIES["mambairv2_light"]


@pytest.fixture(scope="module")
def network():
    return MambaIRv2Light(4)


def cost(network, bits, overrides=None):
    tensors = Plan(ENTRIES, bits, overrides or {}).resolve(network) if bits else []
    return count(parameter_sizes(network), network.operations(180, 320), tensors)


def test_the_set_of_the_paper(network):
    tensors = Plan(ENTRIES, 4).resolve(network)
    assert len(tensors) == 960
    assert sum(t.rectified for t in tensors) == 220
    assert sum(t.role == "weight" for t in tensors) == 20 * 15
    layer = {t.name.rpartition("layers.")[2][2:] for t in tensors if t.name.startswith("layers.2.residual_group.layers.1.")}
    assert len(layer) == 48
    assert {"q.input", "k.input", "v.input", "win_mhsa.points.map", "assm.CPE.0.weight"} <= layer
    one_sided = {t.name for t in tensors if t.entry.one_sided}
    assert len(one_sided) == 20 and all(name.endswith("points.map") for name in one_sided)


def test_table_4_counts_of_full_precision(network):
    full = cost(network, None)
    assert (full.parameters, round(full.size_mib, 2), round(full.macs / 1e9, 1)) == (789_680, 3.01, 75.6)


@pytest.mark.parametrize("bits, mib, giga", [(4, 1.204, 22.02), (2, 1.075, 18.19)])
def test_table_4_counts_need_the_cpe_convolution_in_float(network, bits, mib, giga):
    """mambairv2_light.md section 9: the natural set that matches all four printed numbers leaves CPE out."""
    low = cost(network, bits, {"**.CPE.0.*": None})
    assert low.quantized_parameters == 541_760
    assert (round(low.size_mib, 3), round(low.weighted_macs / 1e9, 2)) == (mib, giga)


def test_the_released_set_quantizes_the_cpe_convolution_too(network):
    low = cost(network, 4)
    assert low.quantized_parameters == 541_760 + 20 * 48 * 9
    assert (round(low.size_mib, 3), round(low.weighted_macs / 1e9, 2)) == (1.175, 21.56)


def test_overrides_change_bits_and_the_last_wins(network):
    tensors = Plan(ENTRIES, 4, {"**.points.map": 8, "layers.0.**.points.map": None}).resolve(network)
    bits = {t.name: t.bits for t in tensors if t.name.endswith("points.map")}
    assert sorted(set(bits.values()), key=str) == [8, None]
    assert sum(b is None for b in bits.values()) == 5


@pytest.mark.parametrize("name, pattern, expected", [
    ("layers.0.q", "layers.*.q", True), ("layers.0.points.q", "layers.*.q", False), ("a.b.c.d", "a.**.d", True),
    ("a.bc", "a.b*", True), ("axb", "a.b", False),
])
def test_patterns(name, pattern, expected):
    assert matches(name, pattern) is expected


@pytest.mark.parametrize("entries, overrides, message", [
    ([PlanEntry("nowhere")], {}, "'nowhere' matches no layer"),
    ([PlanEntry("conv"), PlanEntry("con*")], {}, "conv is matched by two"),
    ([PlanEntry("head.1")], {}, "head.1, a GELU"),
    ([PlanEntry("conv", rectifier=True)], {}, "needs a Linear"),
    ([PlanEntry("conv")], {"head.**": 2}, "'head.\\*\\*'.*matches no tensor"),
])
def test_mistakes_in_a_plan_are_named(entries, overrides, message):
    with pytest.raises(UserError, match=message):
        Plan(entries, 4, overrides).resolve(Small())


def test_a_plan_survives_its_description(network):
    import json
    plan = Plan(ENTRIES, 2, {"**.points.map": 8})
    again = Plan.from_description(json.loads(json.dumps(plan.describe())), "a file")
    assert again.resolve(network) == plan.resolve(network)


def test_the_printed_plan_has_its_totals(network):
    text = plan_table(parameter_sizes(network), network.operations(180, 320), Plan(ENTRIES, 4).resolve(network))
    assert "960" in text and "789,680" in text and "75.64 G" in text and "1.175 MiB" in text
    q = next(line for line in text.splitlines() if line.startswith("layers.*.residual_group.layers.*.q.weight"))
    assert q.split()[1:] == ["20", "4", "yes", "46080", "-", "23040"]
