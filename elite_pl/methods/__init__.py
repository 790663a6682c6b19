"""The methods: each is one file, and shows only what is its own."""
