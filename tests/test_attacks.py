"""Bad input of every kind, through the real entry points: one clear line, exit code 2, and nothing written is lost.

What was found by attack, kept as cases; `test_bad_input.py` has the values of single keys.
"""

# ----------------------------------------------------------------------------------------------------- what is typed


# ------------------------------------------------------------------------------------------- files that a run goes on


# ------------------------------------------------------------------------------------------ files that a report reads
