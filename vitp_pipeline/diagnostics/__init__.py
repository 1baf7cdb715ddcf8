"""Answer questions before a run: is the dataset sound, what will it cost, what is installed."""
