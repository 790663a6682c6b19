"""Many runs: the cells of a sweep, skipping those that are finished, and reading them back."""
