"""What pytest-benchmark notes about the machine: what every result of ours notes, and not the machine's name."""

from typing import Any

from bench import environment


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(processor=environment.processor(), gpu=environment.gpu())
