"""The torch process: model, sites, SAEs, probes, inspection."""
