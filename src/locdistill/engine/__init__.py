"""Training: the loop, and what it goes through."""

from locdistill.engine.loop import fit
from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.engine.signals import requeued
from locdistill.errors import RunInterrupted

__all__ = ["EngineSettings", "FitResult", "RunInterrupted", "TrainingModule", "fit", "requeued"]
