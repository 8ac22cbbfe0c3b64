"""How the native extension is built; used by setup.py alone and never installed."""
