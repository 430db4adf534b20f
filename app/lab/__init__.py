"""The lab: captions with its own database, Redis, web and worker processes, on this machine, in one directory."""
