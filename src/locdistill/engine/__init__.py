"""Training: one Lightning module, one callback, one function."""

from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.engine.signals import requeued
from locdistill.engine.trainer import fit
from locdistill.errors import RunInterrupted

__all__ = ["EngineSettings", "FitResult", "RunInterrupted", "TrainingModule", "fit", "requeued"]
