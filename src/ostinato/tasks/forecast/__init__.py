"""Forecasting: series in, forecasts with their uncertainty out."""
