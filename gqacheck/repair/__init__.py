"""A sound copy of a broken checkpoint: heads and channels back beside their own, attributes and config in step."""

from gqacheck.repair.facts import CannotRepair, Change, Reference, Refusal, RepairReport
from gqacheck.repair.run import repair

__all__ = ["CannotRepair", "Change", "Reference", "Refusal", "RepairReport", "repair"]
