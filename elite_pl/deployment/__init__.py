"""A trained detector at work: the scores of any number of samples, and exports for use without elite_pl."""
