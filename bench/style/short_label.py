"""Labels that fit: of methods, problems and tasks, which may be of any length."""


def short(label: str, length: int = 24) -> str:
    """``label`` in at most ``length`` characters, its middle left out: its ends tell it from others."""
    if len(label) <= length:
        return label
    head = (length - 1) // 2
    return f"{label[:head]}…{label[-(length - 1 - head) :]}"
