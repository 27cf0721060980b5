"""Times, sizes and counts as a person says them."""


def as_time(seconds: float) -> str:
    """To the second: 42 s, 3:07, 2:05:09."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def roughly(seconds: float) -> str:
    """In one unit: 42 s, 3 min, 2.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def as_size(count: float) -> str:
    """Bytes: 412 B, 3 kB, 18 MB, 2.1 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def counted(count: float, thing: str) -> str:
    """`1 seed`, `2 seeds`, `0.5 points`."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {thing}" if count == 1 else f"{number} {thing}s"
