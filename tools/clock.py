"""What the stages of a chain took, log/reproduce.json, and what the rest of the chain will take."""
from tools.files import read_json

TIMES = "log/reproduce.json"


def read_times(experiment):
    """Return {title of a stage: {"seconds", "whole": whether it was completed}}."""
    return read_json(experiment / TIMES) if (experiment / TIMES).exists() else {}


def estimate(predicted, times):
    """Estimate a chain's time from predicted seconds of its stages and from what those took that were run.

    predicted {title: seconds};  times: see read_times
    Completed stages count what they took. The others count their prediction, times the factor by which the completed
    ones took longer than predicted (between 1/4 and 4). Returns {title: seconds}, and the seconds still to come.
    """
    done = {title: times[title]["seconds"] for title in predicted if times.get(title, {}).get("whole")}
    expected = sum(predicted[title] for title in done)
    factor = min(4, max(1 / 4, sum(done.values()) / expected)) if expected else 1
    left = {title: seconds * factor for title, seconds in predicted.items() if title not in done}
    begun = sum(min(left[title], times[title]["seconds"]) for title in left if title in times)
    return done | left, sum(left.values()) - begun


def duration(seconds):
    """Write a time as 45 s, 3:20 min or 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, unit = (whole // 60, whole % 60, "min") if whole < 3600 else (whole // 3600, whole % 3600 // 60, "h")
    return f"{large}:{small:02d} {unit}"
