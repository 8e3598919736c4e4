"""Plans fitted to a network: `fit`, and `tune`, the search over settings that it starts from."""
