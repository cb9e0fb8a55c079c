"""Sweeps: a computation at many points at once, resumable, on all devices; and those that the command line knows."""

from .engine import Point as Point
from .engine import SweepError as SweepError
from .engine import sweep as sweep
from .subject import Subject as Subject
