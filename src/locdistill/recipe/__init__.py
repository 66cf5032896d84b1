"""The description of a run as data: schema, terms, defaults, catalogue, run folder."""
