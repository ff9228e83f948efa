"""How many processors there are for this process."""
import os


def cores():
    """Count the cores that this process may use: in a job or a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
