"""The papers' experiments, and one protocol for all, as files: every value with where it is from."""

from mithridate.studies.presets.book import NAMES, Preset, Sourced, preset

__all__ = ["NAMES", "Preset", "Sourced", "preset"]
