"""Sampler of trial values; the only module that uses optuna."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from locdistill.errors import RunError
from locdistill.study.tune.space import Searched, Value, Values, draw


def sampler() -> Any:
    """Import and return optuna.

    Raises:
        RunError: Optuna is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise RunError("tuning needs optuna, which is not installed: pip install 'locdistill[tune]'") from None


def propose(space: Sequence[Searched], finished: Sequence[tuple[Values, float]], number: int) -> Values:
    """Propose values for a trial with the tree-structured Parzen estimator (Bergstra et al. 2011).

    The result depends on the arguments alone, so that a resumed search gives the same trials as an uninterrupted one:
    the study is created anew each time, and the sampler's seed is the number of the trial. The first ten trials are
    random.

    Args:
        space: Searched settings.
        finished: Values and AP of the finished trials.
        number: Number of the trial, from 1.

    Raises:
        RunError: Optuna is not installed.
    """
    optuna = sampler()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=number))
    distributions: dict[str, Any] = {}
    for one in space:
        if one.choices:
            distributions[one.name] = optuna.distributions.CategoricalDistribution(one.choices)
            continue
        kind = optuna.distributions.IntDistribution if one.integer else optuna.distributions.FloatDistribution
        distributions[one.name] = kind(one.low, one.high, log=one.log)
    for values, ap in finished:
        known = {name: distributions[name] for name in values}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=known, value=ap))
    trial = study.ask()

    def pick(searched: Searched) -> Value:
        if searched.choices:
            return str(trial.suggest_categorical(searched.name, searched.choices))
        suggest = trial.suggest_int if searched.integer else trial.suggest_float
        return searched.rounded(suggest(searched.name, searched.low, searched.high, log=searched.log))

    return draw(space, pick)
