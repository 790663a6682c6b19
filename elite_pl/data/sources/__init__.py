"""Where arrays come from. A source returns all that it has, as `Arrays`; who is normal or labeled is decided later."""
