"""How the native extension is built and how its wheels are named and checked; never installed."""
