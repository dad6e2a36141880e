"""Raw videos: ingest, probe, decode, quarantine, shards; the rendered sample world."""
