"""How it happens: the driver, workers, Ray Tune (in ray_tune.py alone) and MLflow."""
