"""Make pytest-benchmark record the processor and the GPU, as all our results do, but not the machine's name."""

from typing import Any

from bench.run import machine_facts


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(processor=machine_facts.processor(), gpu=machine_facts.gpu())
