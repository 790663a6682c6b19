"""A trained detector at work: the scores of any number of samples, and exports to where elite_pl is not."""
