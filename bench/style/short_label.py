"""Shorten the labels of methods, problems and tasks, which can be of any length."""


def short(label: str, length: int = 24) -> str:
    """Return ``label`` in at most ``length`` characters, without its middle: labels differ mostly at their ends."""
    if len(label) <= length:
        return label
    head = (length - 1) // 2
    return f"{label[:head]}…{label[-(length - 1 - head) :]}"
