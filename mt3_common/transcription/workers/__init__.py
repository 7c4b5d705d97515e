"""The network in several processes: of this machine, or actors of a Ray cluster."""
