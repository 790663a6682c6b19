"""The machine and the versions behind a measurement."""

from elite_pl.runs.environment import environment


def in_words(**versions: str) -> str:
    """A sentence for the end of a page of results.

    Args:
        **versions: Of packages beside Python and torch that matter, by their names.
    """
    where = environment()
    versions = {"Python": where["version/python"], "torch": where["version/torch"], **versions}
    named = (f"{name} {version}" for name, version in versions.items())
    return ", ".join((where["device"], where["platform"], *named, f"commit {where['commit']}.")) + "\n"
