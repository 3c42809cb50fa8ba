"""Trials are run here: the driver, its workers, Ray Tune and MLflow.

Only ``ray_*.py`` import Ray.
"""
