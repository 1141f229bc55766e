"""What a study found: `tables`, `curves` and `sheets`, the `page` that holds them, and the `versions` behind them."""
