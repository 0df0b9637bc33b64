"""Name the parts, and the function that measures each."""

from collections.abc import Callable

from . import device_tests, gpu_costs, gpu_suite
from .part_measurement import PartMeasurement
from .part_runner import Part

PARTS = (
    Part("tests", "the balancers' tests on the device", least=30, most=120),
    Part("norm-step", "the gradient-norm step on CPU and CUDA", least=30, most=60),
    Part("limits", "GradNorm's step eager, captured and compiled", least=30, most=110),
    Part("methods", "a step with every method", least=20, most=90),
    Part("peers", "other implementations of GradNorm, on the CPU", least=40, most=60),
    Part("suite", "the suite default", least=60, most=3600),
)
"""All parts, in the order in which they run. The suite takes what the others leave."""
MEASURE: dict[str, Callable[[PartMeasurement], None]] = {
    "tests": device_tests.run,
    "norm-step": gpu_costs.norm_step,
    "limits": gpu_costs.limits,
    "methods": gpu_costs.methods,
    "peers": gpu_costs.peers,
    "suite": gpu_suite.run,
}
