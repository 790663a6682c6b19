"""What pyproject.toml cannot say: all packages are found, and the top-level `conf/` ships as `elite_pl.conf`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["elite_pl", "elite_pl.*"]), "elite_pl.conf"],
    package_dir={"elite_pl.conf": "conf"},
)
