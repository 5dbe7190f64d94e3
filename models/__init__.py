"""What can be loaded: one card (TOML) per model family, and the store that loads it."""
