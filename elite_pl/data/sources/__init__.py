"""Data sources. A source returns all its samples as `Arrays`; the split decides later which are normal or labeled."""
