"""The serving half: bundle contract, server, client and offline labelling. Never imports torch."""
