"""Sizes, counts, shares and durations as people read them."""


def format_size(count: float) -> str:
    """A number of bytes: `812 bytes`, `12 kB`, `12 MB`, `3.4 GB`."""
    if count >= 999_500_000:
        return f"{count / 1e9:.1f} GB"
    if count >= 999_500:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e3:.0f} kB" if count >= 1000 else f"{count:.0f} bytes"


def format_count(number: int, one: str, many: str = "") -> str:
    """`1 sample`, `1,200 samples`; `many` is the plural if it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_parameters(count: int) -> str:
    """A model's size: `5.3M`, `7.2B`."""
    return f"{count / 1e9:.1f}B" if count >= 999_950_000 else f"{count / 1e6:.1f}M"


def format_percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1: `43 %`, `43.1 %`."""
    return f"{share * 100:.{digits}f} %"


def format_share(share: float, interval: tuple[float, float]) -> str:
    """A share with its interval: `43.1 % (38.2 to 47.9)`."""
    low, high = interval
    return f"{format_percent(share, 1)} ({low * 100:.1f} to {high * 100:.1f})"


def format_loss(value: float) -> str:
    """Three significant digits for the losses that occur."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """`40 seconds`, `3 minutes`, `1 hour 20 minutes`."""
    if seconds < 90:
        return format_count(max(round(seconds), 1), "second")
    minutes = round(seconds / 60)
    if minutes < 90:
        return format_count(minutes, "minute")
    hours, rest = divmod(minutes, 60)
    if hours >= 48:
        return format_count(round(hours / 24), "day")
    return format_count(hours, "hour") + (f" {format_count(rest, 'minute')}" if rest else "")
