"""Quantization and nothing else: range searches, one quantizer, quantized layers, plans and their cost."""
import ppsr2q.ops  # noqa: F401  settles the environment before Paddle is imported, or says how to get it
from ppsr2q.core.plan import PlanEntry, QuantizerOptions
from ppsr2q.quant.calibrate import CalibrationSettings, calibrate, get_bounds, set_bounds
from ppsr2q.quant.convert import named_quantizers, quantize
from ppsr2q.quant.fake_quantizer import FakeQuantizer, fix_bounds, keep_open
from ppsr2q.quant.layers import QuantConv2D, QuantLinear
from ppsr2q.quant.plan import PLAN_ENTRIES, Plan

__all__ = ["CalibrationSettings", "FakeQuantizer", "PLAN_ENTRIES", "Plan", "PlanEntry", "QuantConv2D", "QuantLinear",
           "QuantizerOptions", "calibrate", "fix_bounds", "get_bounds", "keep_open", "named_quantizers", "quantize", "set_bounds"]
