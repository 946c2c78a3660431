"""Forecasting: series in, forecasts with their uncertainty out."""

from ostinato.tasks.forecast.estimator import Forecaster
from ostinato.tasks.forecast.session import Session
from ostinato.tasks.forecast.settings import ForecastSettings

__all__ = ["ForecastSettings", "Forecaster", "Session"]
