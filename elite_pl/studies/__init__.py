"""Many runs: the cells of a sweep, what is finished of them, and how they are read again."""
