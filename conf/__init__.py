"""The Hydra configuration, installed as `elite_pl.conf`."""
