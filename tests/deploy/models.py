"""A packed model of random numbers, made without Paddle."""
import numpy as np

from ppsr2q.core.plan import PlanEntry, PlanRules
from ppsr2q.deploy.packed import PackedModel, TensorQuantizer, make_layout

LAYER = "layers.*.residual_group.layers.*"
ENTRIES = [PlanEntry(f"{LAYER}.q", rectifier=True), PlanEntry(f"{LAYER}.convffn1.sg.conv"),
           PlanEntry(f"{LAYER}.win_mhsa.points.map", one_sided=True),
           PlanEntry(f"{LAYER}.assm.selectiveScan.points.x_proj_weight", parameter="x_proj_weight"),
           PlanEntry(f"{LAYER}.assm.selectiveScan.points.A"), PlanEntry(f"{LAYER}.assm.points.prompt_table"),
           PlanEntry(f"{LAYER}.assm.points.one_hot", fixed=(0.0, 1.0))]


def random_model(bits=4, overrides=None, scale=2, seed=0):
    rng = np.random.default_rng(seed)
    architecture = {"name": "mambairv2_light", "scale": scale}
    plan = PlanRules(ENTRIES, bits, overrides or {}).describe()
    layout = make_layout(architecture, plan, "a test")
    quantizers = {}
    for name, n in layout.bits.items():
        lower = -rng.uniform(1, 2)
        bounds = layout.fixed.get(name) or (float(np.float32(lower)), float(np.float32(lower / 2)))
        quantizers[name] = TensorQuantizer(n, *bounds)
    codes = {t.name: rng.integers(0, 2**t.bits, t.shape, np.uint8) for t in layout.coded}
    floats = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in layout.rest.items()}
    return PackedModel(architecture, quantizers, codes, floats, {"plan": plan, "seed": seed})
